// Package backendtest tests backends. It has the suite that every backend has
// to pass, and the fake backend for tests of what uses backends.
//
// A backend runs the suite in its own tests, against its real platform or
// against a stand-in for it:
//
//	func TestConformance(t *testing.T) {
//		backendtest.Run(t, func(t *testing.T) backendtest.Subject {
//			platform := startPlatform(t)
//			return backendtest.Subject{
//				Backend: provisioned(t, platform),
//				Running: platform.count,
//				Kill:    platform.kill,
//			}
//		})
//	}
//
// The suite holds what the doc comments of the package scaler promise. It
// never sleeps: it waits for reports, up to a deadline. Run it with the race
// detector, too.
//
// This package is for tests only. It imports the package scaler and nothing
// else of Usher.
package backendtest
