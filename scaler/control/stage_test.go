package control

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/caddy-usher/usher/scaler"
)

// made has the moves that the tests have made so far.
var made sync.Map // of [2]stage

// noteMove takes the place of moved in tests: a move that is not allowed ends
// them.
func noteMove(i *instance, to stage) {
	if !i.stage.mayMove(to) {
		panic(fmt.Sprintf("%s goes from %v to %v, which is not allowed", i.ID, i.stage, to))
	}
	made.Store([2]stage{i.stage, to}, true)
}

// notExplored has the moves that no explored order of events makes, because the
// platform there stops and ends nothing but ready instances by itself. Each
// comes with what makes it.
var notExplored = map[[2]stage]func(p *platform, id string){
	{starting, ended}: func(p *platform, id string) { p.end(id, exit("exit status 1")) },
	{starting, taken}: stops,
	{ready, taken}: func(p *platform, id string) {
		p.phase(id, scaler.PhaseReady)
		stops(p, id)
	},
	{unready, ended}: func(p *platform, id string) {
		withdraws(p, id)
		p.end(id, exit("exit status 1"))
	},
	{unready, taken}: func(p *platform, id string) {
		withdraws(p, id)
		stops(p, id)
	},
	{taken, ended}: func(p *platform, id string) {
		stops(p, id)
		p.end(id, nil)
	},
}

func stops(p *platform, id string) { p.phase(id, scaler.PhaseStopping) }

func withdraws(p *platform, id string) {
	p.phase(id, scaler.PhaseReady)
	p.phase(id, scaler.PhaseStarting)
}

// everyMoveIsMade walks the table of the moves after the exploration.
func everyMoveIsMade(t *testing.T) {
	for from, all := range moves {
		for _, to := range all {
			move := [2]stage{stage(from), to}
			_, explored := made.Load(move)
			do := notExplored[move]
			switch {
			case explored != (do == nil):
				t.Errorf("%v: explored %v, and on the list of those that are not: %v", move, explored, do != nil)
			case do != nil:
				bubble(t, func(t *testing.T) {
					p := &platform{startTime: -1}
					b := newBench(t, defaults(), p, nil)
					w := b.waits()
					defer w.Cancel()
					waitIdle()
					do(p, p.ids()[0])
					waitIdle()
					if _, ok := made.Load(move); !ok {
						t.Errorf("%v is not made\n%s", move, b.story())
					}
				})
			}
		}
	}
}

func TestAMoveThatIsNotAllowedPanicsInTests(t *testing.T) {
	for from := starting; from <= ended; from++ {
		for to := starting; to <= ended; to++ {
			func() {
				defer func() {
					if panicked := recover() != nil; panicked == from.mayMove(to) {
						t.Errorf("%v to %v: panics %v", from, to, panicked)
					}
				}()
				moved(&instance{stage: from}, to)
			}()
		}
	}
}

func TestAMoveThatIsNotAllowedIsLoggedInProduction(t *testing.T) {
	var out bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&out, nil))
	l := NewLoop(scaler.Env{Service: "web", Logger: func() *slog.Logger { return logger }}, &Settings{Policy: defaults().Policy}, NewBudget(1), new(Timers), &recorder{})
	i := &instance{Instance: scaler.Instance{ID: "r1-1"}, revision: &revision{loop: l}, stage: ended}
	logMistake(i, ready)
	if s := out.String(); !strings.Contains(s, "level=ERROR") || !strings.Contains(s, "instance=r1-1 from=ended to=ready") {
		t.Fatal(s)
	}
	out.Reset()
	i.stage = unready
	if logMistake(i, ready); out.Len() > 0 {
		t.Fatal(out.String())
	}
}
