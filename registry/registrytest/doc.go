// Package registrytest is the conformance suite for stores of the registry, and a store
// in memory for tests.
package registrytest
