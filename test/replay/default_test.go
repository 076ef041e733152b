package main

import "testing"

// The short form would hold nothing against the bars otherwise.
func TestUshersDefaultIsAmongThePoliciesThatAreReplayed(t *testing.T) {
	n := 0
	for _, c := range contenders() {
		if c.usual() {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d of the policies are Usher's default", n)
	}
}
