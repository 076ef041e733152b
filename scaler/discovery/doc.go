// Package discovery is what the modules that discover services have in common,
// whatever platform they watch.
//
// It owns the keys that an object may have as labels or annotations, and the
// pace: when the platform is asked again, and when a list is reported.
//
// It promises: a key that is not on the list has no effect and is named; changes
// that follow each other closely make one report; a list that says what the one
// before said is not reported again; a platform that is away is asked again after
// growing pauses and reported once, and the list before stays.
//
// It never asks a platform itself, and never decides what a value means.
package discovery
