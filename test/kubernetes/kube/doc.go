// Package kube runs a real Kubernetes on this machine, for tests: a control
// plane and some nodes, all of them processes of their own, in namespaces that
// end with the program that asked for them. Nothing of it can reach the world
// outside, and nothing of it is left over: when the first process of a process
// namespace ends, the kernel ends all others, too.
//
// A program calls Enter first, which starts it again inside; there it calls
// Up.
package kube
