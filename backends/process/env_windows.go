package process

import "os"

// inheritedVariables are Caddy's own that instances get too. Without the first
// ones few programs start on Windows.
var inheritedVariables = []string{
	"SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT", "TEMP", "TMP", "USERPROFILE", "APPDATA", "LOCALAPPDATA",
	"HOME", "LANG", "TZ",
}

// defaultPath is where instances find programs unless env says otherwise.
func defaultPath() string { return os.Getenv("PATH") }
