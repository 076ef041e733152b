//go:build unix

package process

import (
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/exp/zapslog"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-usher/usher/scaler"
)

func TestBytesOfOutputPerSecondAreBoundedToo(t *testing.T) {
	core, logs := observer.New(zapcore.DebugLevel)
	o := newOutput(slog.New(zapslog.NewHandler(core)))
	now := time.Now()
	line := strings.Repeat("x", maxLine)
	const seconds, each = 3, 500 // fewer lines than are allowed, but long ones
	for s := range seconds {
		for range each {
			o.line("stdout", line, now.Add(time.Duration(s)*time.Second))
		}
	}
	// A calm second ends the flood.
	o.line("stdout", "calm", now.Add(seconds*time.Second))
	o.line("stdout", "calm", now.Add((seconds+1)*time.Second))
	o.finish()
	bytes := 0
	for _, e := range logs.FilterField(zap.String("stream", "stdout")).All() {
		bytes += len(e.Message)
	}
	if bytes > seconds*maxBytesPerSec+16 || bytes < seconds*(maxBytesPerSec-maxLine) {
		t.Errorf("%d bytes were logged in %d seconds", bytes, seconds)
	}
	if n := logs.FilterLevelExact(zapcore.WarnLevel).Len(); n != 1 {
		t.Errorf("%d warnings", n)
	}
	dropped := logs.FilterMessage("lines of output were dropped").All()
	if len(dropped) != 1 || dropped[0].ContextMap()["lines"] != int64(seconds*(each-maxBytesPerSec/maxLine)) {
		t.Errorf("%v", dropped)
	}
}

// cpuTime is what this process has used of its own. What the kernel does for it is
// not in it: with output in files that is mostly giving back the pages of files
// that were emptied, and up to how much the program writes in a second.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano())
}

// The tests of this package run one after the other, so what is used is used by
// the reading of the output.
func TestOutputWithoutEndTakesAFewPercentOfACore(t *testing.T) {
	for name, command := range map[string]string{
		"short lines":   "exec yes",
		"long lines":    "exec yes $(seq 2000)",
		"without lines": "exec cat /dev/zero",
	} {
		for _, keep := range []bool{false, true} {
			if keep && name == "without lines" {
				continue // the same as long lines, and the disk is spared
			}
			if keep {
				command = strings.Replace(command, "exec", "exec timeout 4", 1)
			}
			t.Run(fmt.Sprintf("%s, keep %t", name, keep), func(t *testing.T) {
				b := open(t, shell(command), func(_ *scaler.Env, l *scaler.LocalOptions) { l.Keep = keep })
				in := b.one()
				began, before := time.Now(), cpuTime(t)
				time.Sleep(2 * time.Second)
				share := float64(cpuTime(t)-before) / float64(time.Since(began))
				t.Logf("%.1f%% of a core", 100*share)
				if share > 0.15*raceFactor {
					t.Errorf("%.0f%% of a core", 100*share)
				}
				b.scale(0, in.ID)
				b.awaitEnd(in.ID)
			})
		}
	}
}

func TestTheFirstLinesOfACrashAreKept(t *testing.T) {
	var registers []string
	for i := range 200 {
		registers = append(registers, fmt.Sprintf("r%d 0x%x", i, i))
	}
	for name, report := range map[string][]string{
		"Go panic":       {"panic: the cause", "", "goroutine 1 [running]:"},
		"Go fatal error": {"fatal error: the cause", "[signal SIGSEGV]"},
		"Java":           {`Exception in thread "main" java.lang.IllegalStateException: the cause`, "\tat App.main(App.java:3)"},
		"Python":         {"Traceback (most recent call last):", `  File "app.py", line 3, in the cause`},
		"Rust":           {"thread 'main' panicked at src/main.rs:4:5:", "the cause"},
		"Rust with id":   {"thread 'main' (77) panicked at src/main.rs:4:5:", "the cause"},
	} {
		o := newOutput(nil)
		now := time.Now()
		for i := range 100 {
			o.line("stderr", fmt.Sprintf("before %d", i), now)
		}
		for _, l := range append(report, registers...) {
			o.line("stderr", l, now)
		}
		lines := strings.Split(o.tail(), "\n")
		left := len(report) + len(registers) - keptFirst - keptLines
		if len(lines) != keptFirst+1+keptLines || lines[0] != report[0] || lines[1] != report[1] ||
			lines[keptFirst] != fmt.Sprintf("... (%d lines left out)", left) || lines[len(lines)-1] != registers[199] {
			t.Errorf("%s: %q", name, lines)
		}
	}
}

func TestAShortCrashIsToldOnceAndASurvivedOneIsForgotten(t *testing.T) {
	now := time.Now()
	o := newOutput(nil)
	o.line("stderr", "panic: short", now)
	o.line("stderr", "goroutine 1", now)
	if got := o.tail(); got != "panic: short\ngoroutine 1" {
		t.Errorf("%q", got)
	}
	// 25 lines: 5 of them are not among the last.
	for i := range 23 {
		o.line("stderr", fmt.Sprint(i), now)
	}
	if got := strings.Split(o.tail(), "\n"); len(got) != 25 || got[0] != "panic: short" || got[24] != "22" {
		t.Errorf("%q", got)
	}
	now = now.Add(time.Hour)
	for i := range 30 {
		o.line("stderr", fmt.Sprint(i), now)
	}
	if got := o.tail(); strings.Contains(got, "short") {
		t.Errorf("a crash of an hour ago is told: %q", got)
	}
	o.line("stderr", "panic: the real one", now)
	for i := range 30 {
		o.line("stderr", fmt.Sprint(i), now)
	}
	if got := o.tail(); !strings.HasPrefix(got, "panic: the real one\n0\n") {
		t.Errorf("%q", got)
	}
}

func TestACleanExitIsToldApartFromACrash(t *testing.T) {
	clean, crash := exitFailure("exit status 0", "bye"), exitFailure("exit status 1", "oh")
	if !strings.Contains(clean.Short, "ended by itself without an error") || !strings.Contains(clean.Short, "exit status 0") || !strings.Contains(clean.Detail, "foreground") {
		t.Errorf("%+v", clean)
	}
	if crash.Short != "exit status 1" || crash.Detail != "oh" {
		t.Errorf("%+v", crash)
	}
}
