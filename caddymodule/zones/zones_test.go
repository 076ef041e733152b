package zones

import (
	"bytes"
	"errors"
	"io/fs"
	"testing"
	"time"
)

func TestZonesAreFoundWithoutThoseOfTheMachine(t *testing.T) {
	data, err := find("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	berlin, err := time.LoadLocationFromTZData("Europe/Berlin", data)
	if err != nil {
		t.Fatal(err)
	}
	for at, want := range map[string]string{"2026-01-15T12:00:00+01:00": "CET", "2026-07-15T12:00:00+02:00": "CEST"} {
		moment, err := time.Parse(time.RFC3339, at)
		if err != nil {
			t.Fatal(err)
		}
		if got := moment.In(berlin).Format("2006-01-02T15:04:05Z07:00 MST"); got != at+" "+want {
			t.Errorf("%s is %s there", at, got)
		}
	}
	// Zones that are alike have one record.
	if same, err := find("Arctic/Longyearbyen"); err != nil || !bytes.Equal(same, data) {
		t.Errorf("Arctic/Longyearbyen is not as Europe/Berlin: %v", err)
	}
	for _, name := range []string{"Europe/Nowhere", "Europe", "Europe/", "../etc/passwd", "Europe/Berlin Europe/Copenhagen"} {
		if _, err := find(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := Load(name); err == nil {
			t.Errorf("%s is a zone", name)
		}
	}
	for _, name := range []string{"", "UTC", "America/New_York", "Asia/Kolkata"} {
		if _, err := Load(name); err != nil {
			t.Error(err)
		}
	}
}
