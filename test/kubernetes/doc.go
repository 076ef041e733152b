// Package kubernetes tests Usher on a real Kubernetes: etcd, API server,
// controller manager, scheduler, kubelets and containers, on this machine,
// without a registry and without a network.
//
//	go test ./test/kubernetes -kubernetes -count=1 -v -timeout 90m
//
// needs Linux, root, and what package kube lists (on Debian: containerd, runc,
// containernetworking-plugins, iptables, iproute2, util-linux). Without the
// flag, or where one of them is missing, it says so in one line and passes.
// The first run compiles Kubernetes, which takes about a quarter of an hour;
// later ones find the binary in the user's cache directory and have three
// nodes up in about ten seconds.
//
// For a look around, `go run ./test/kubernetes/up` gives a shell in such a
// cluster.
package kubernetes
