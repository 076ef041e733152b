package main

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// findPostgres returns the program of the server. Debian has it in no path.
func findPostgres() string {
	if path, err := exec.LookPath("postgres"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil { // initdb lies beside it
			return path
		}
	}
	all, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(all) == 0 {
		return ""
	}
	return slices.Max(all)
}

// startPostgres starts a PostgreSQL that keeps nothing beyond the part. It writes
// to the disk as it does by default.
func (b *bench) startPostgres() (dsn string, err error) {
	port, err := b.freePorts(1)
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(b.dir, "postgres-*")
	if err != nil {
		return "", err
	}
	const secret = "of the benchmark"
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte(secret), 0o644); err != nil {
		return "", err
	}
	attr := endWithParent()
	if attr.Credential, err = otherUser(); err != nil {
		return "", err
	}
	if as := attr.Credential; as != nil {
		// The directory is the other user's, who has to get to it.
		if err := errors.Join(os.Chown(dir, int(as.Uid), int(as.Gid)), os.Chmod(b.dir, 0o711)); err != nil {
			return "", err
		}
	}
	data := filepath.Join(dir, "data")
	initdb := exec.CommandContext(b.ctx, filepath.Join(filepath.Dir(b.binaries.postgres), "initdb"),
		"-D", data, "-U", "usher", "-A", "scram-sha-256", "--pwfile", password, "-E", "UTF8", "--no-locale")
	initdb.Dir, initdb.SysProcAttr = dir, attr
	if out, err := initdb.CombinedOutput(); err != nil {
		return "", fmt.Errorf("initdb: %w: %s", err, out)
	}
	p, err := b.startIn(dir, attr, "postgres", b.binaries.postgres, "-D", data, "-p", strconv.Itoa(port),
		"-c", "listen_addresses="+host, "-c", "unix_socket_directories=")
	if err != nil {
		return "", err
	}
	if err := await(30*time.Second, "PostgreSQL listens", func() bool { return p.ended() || answers(at(port)) }); err != nil || p.ended() {
		return "", fmt.Errorf("PostgreSQL does not come up: %w\n%s", cmpErr(err), p.output())
	}
	u := url.URL{Scheme: "postgres", User: url.UserPassword("usher", secret), Host: at(port), Path: "postgres"}
	return u.String(), nil
}

// otherUser is the user that runs PostgreSQL, which refuses to run as root.
func otherUser() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 == nil && err2 == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, fmt.Errorf("there is no user that could run PostgreSQL, which refuses to run as root")
}
