// Package discoverytest is the conformance suite for modules that discover
// services. Every one of them passes it, with a server of its tests and with a
// real platform.
//
// It owns what every discovery owes: whole lists after each change and each
// reconnection, nothing but the labelled objects themselves, and no list at all
// while the platform cannot be asked. It never asks a platform itself: the
// Platform of a Setup does.
package discoverytest
