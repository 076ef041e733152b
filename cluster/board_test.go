package cluster

import (
	"math/rand/v2"
	"reflect"
	"testing"
)

// However notes travel, boards that have heard of all of them are equal, and have
// the latest word of each Caddy that knew of the others'.
func TestBoardsThatHaveHeardOfAllNotesAreEqual(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		boards := []*Board{NewBoard("a"), NewBoard("b"), NewBoard("c")}
		var made []Note
		for range 30 {
			b := boards[rnd.IntN(3)]
			key := string(rune('x' + rnd.IntN(3)))
			if rnd.IntN(3) == 0 {
				made = append(made, b.Take(key))
			} else {
				made = append(made, b.Put(key, string(rune('0'+rnd.IntN(10)))))
			}
			if rnd.IntN(2) == 0 { // some arrive early, some twice
				boards[rnd.IntN(3)].Merge([]Note{made[rnd.IntN(len(made))]})
			}
		}
		for _, b := range boards {
			for _, k := range rnd.Perm(len(made)) {
				b.Merge([]Note{made[k]})
			}
		}
		if !reflect.DeepEqual(boards[0].All(), boards[1].All()) || !reflect.DeepEqual(boards[0].All(), boards[2].All()) {
			t.Fatalf("seed %d: %+v, %+v, %+v", seed, boards[0].All(), boards[1].All(), boards[2].All())
		}
	}
}

func TestWhoKnowsOfANoteCanReplaceIt(t *testing.T) {
	a, b := NewBoard("a"), NewBoard("b")
	b.Put("other", "1")
	b.Put("other", "2")
	b.Put("key", "of b")
	if news := a.Merge(b.All()); len(news) != 2 {
		t.Fatalf("%+v", news)
	}
	taken := a.Take("key")
	if news := b.Merge([]Note{taken}); len(news) != 1 || !b.Get("key").Gone {
		t.Errorf("%+v, %+v", news, b.Get("key"))
	}
	if news := b.Merge(a.All()); news != nil {
		t.Errorf("%+v is news", news)
	}
	again := b.Put("key", "again")
	if a.Merge([]Note{again}); a.Get("key").Value != "again" {
		t.Errorf("%+v", a.Get("key"))
	}
}

func TestWhatIsOnNoBoardIsGone(t *testing.T) {
	if n := NewBoard("a").Get("key"); !n.Gone {
		t.Errorf("%+v", n)
	}
}
