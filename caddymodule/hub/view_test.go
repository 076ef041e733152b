package hub

import "testing"

// This Caddy may hold no slot of an instance without a limit, and counts none then.
func TestAServiceWithoutALimitAnywhereHasNoTotalOfSlots(t *testing.T) {
	for _, test := range []struct {
		of   whole
		want int // -1 is none
	}{{whole{unlimited: true}, -1}, {whole{slots: 5}, 5}} {
		none := 0
		sum := ServiceSummary{Slots: SlotCounts{Total: &none}}
		sum.addOthers(test.of)
		got := -1
		if sum.Slots.Total != nil {
			got = *sum.Slots.Total
		}
		if got != test.want {
			t.Errorf("%+v: %d, want %d", test.of, got, test.want)
		}
	}
}
