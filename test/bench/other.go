//go:build !linux

package main

import (
	"errors"
	"syscall"
	"time"
)

func (*process) cpu() (time.Duration, error) {
	return 0, errors.New("the benchmark needs Linux to read the CPU of a process")
}

func endWithParent() *syscall.SysProcAttr { return nil }

func findPostgres() string { return "" }

func (*bench) startPostgres() (dsn string, err error) {
	return "", errors.New("the benchmark starts PostgreSQL on Linux only")
}
