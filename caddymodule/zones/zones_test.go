package zones

import (
	"bytes"
	"errors"
	"io/fs"
	"testing"
	"time"
)

func TestZonesAreFoundWithoutThoseOfTheMachine(t *testing.T) {
	for _, c := range []struct{ zone, at, name string }{
		{"Europe/Berlin", "2026-01-15T12:00:00+01:00", "CET"},
		{"Europe/Berlin", "2026-07-15T12:00:00+02:00", "CEST"},
		// The last change was in 1945: what is left out has no effect on what is now.
		{"Asia/Kolkata", "2026-07-15T12:00:00+05:30", "IST"},
		// Ramadan follows no rule: each change is in the data.
		{"Africa/Casablanca", "2027-02-20T12:00:00Z", "+00"},
		{"Africa/Casablanca", "2027-07-15T12:00:00+01:00", "+01"},
		// The rule of the zone, long after the last change in the data.
		{"America/New_York", "2071-07-15T12:00:00-04:00", "EDT"},
	} {
		data, err := find(c.zone)
		if err != nil {
			t.Fatal(err)
		}
		zone, err := time.LoadLocationFromTZData(c.zone, data)
		if err != nil {
			t.Fatal(err)
		}
		moment, err := time.Parse(time.RFC3339, c.at)
		if err != nil {
			t.Fatal(err)
		}
		if got := moment.In(zone).Format("2006-01-02T15:04:05Z07:00 MST"); got != c.at+" "+c.name {
			t.Errorf("%s in %s is %s", c.at, c.zone, got)
		}
	}
	// Zones that are alike have one record.
	berlin, err := find("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	if same, err := find("Arctic/Longyearbyen"); err != nil || !bytes.Equal(same, berlin) {
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
