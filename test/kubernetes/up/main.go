//go:build linux

// Command up runs a real Kubernetes, and in it a command or a shell; when that
// ends, the cluster is gone. $KUBECONFIG is set, kubectl and the test app are
// in the path, and Caddy with Usher is caddy.
//
//	go run ./test/kubernetes/up [-nodes 3] [-keep] [command [argument...]]
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"

	"github.com/caddy-usher/usher/test/kubernetes/kube"
)

func main() {
	nodes := flag.Int("nodes", 1, "how many nodes")
	keep := flag.Bool("keep", false, "leave the directory of the cluster, for its logs")
	flag.Parse()
	if why := kube.Missing(); why != "" {
		fmt.Println("skipped: no Kubernetes can run here:", why)
		return
	}
	if !kube.Inside() {
		status, err := kube.Enter(kube.Options{Progress: os.Stderr, Keep: *keep})
		exit(status, err)
	}
	c, err := kube.Up(*nodes, os.Stderr)
	if err != nil {
		exit(1, err)
	}
	os.Setenv("KUBECONFIG", c.Kubeconfig(kube.Admin))
	args := flag.Args()
	if len(args) == 0 {
		args = []string{cmp.Or(os.Getenv("SHELL"), "sh")}
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err = cmd.Run()
	if ended := (*exec.ExitError)(nil); errors.As(err, &ended) {
		exit(ended.ExitCode(), nil)
	}
	exit(0, err)
}

func exit(status int, err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = max(status, 1)
	}
	os.Exit(status)
}
