//go:build race

package harness

// raceEnabled tells whether the test binary was built with -race; Caddy is
// then built so too.
const raceEnabled = true
