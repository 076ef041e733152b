package kubeaccess

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"k8s.io/klog/v2"
)

// What klog is told must not appear on stderr in a format of its own. The log
// of a process cannot be looked at from inside, so another one writes it.
func TestWhatTheClientLogsGoesToCaddysLog(t *testing.T) {
	if os.Getenv("LOG_TO_KLOG") != "" {
		klog.ErrorS(errors.New("no token"), "cannot rotate", "file", "token")
		klog.Infof("of no interest %d", 1)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^TestWhatTheClientLogsGoesToCaddysLog$")
	cmd.Env = append(os.Environ(), "LOG_TO_KLOG=yes")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatal(err, out.String())
	}
	if s := out.String(); !strings.Contains(s, `"level":"warn"`) || !strings.Contains(s, `"logger":"klog","msg":"cannot rotate","err":"no token"`) || strings.Contains(s, "of no interest") {
		t.Errorf("the log is %s", out.String())
	}
}
