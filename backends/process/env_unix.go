//go:build unix

package process

import "os"

// inheritedVariables are Caddy's own that instances get too.
var inheritedVariables = []string{"HOME", "LANG", "TZ"}

// defaultPath is where instances find programs unless env says otherwise.
func defaultPath() string {
	if path := os.Getenv("PATH"); path != "" {
		return path
	}
	return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}
