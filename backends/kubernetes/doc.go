// Package kubernetes scales workloads of a Kubernetes cluster. It finds what
// runs by the scale subresource of the workload and its selector, and changes
// nothing but the number.
//
// It owns the modules usher.backends.kubernetes and usher.discovery.kubernetes,
// which makes services of workloads with an annotation: their configuration; the
// connections to clusters, one for all services of this Caddy that use the
// same; the watches, one per cluster, namespace and kind; the words in which a
// pod says why it does not start; the choice of the pod that goes; and the mark
// on the workload that says which Usher scales it.
//
// It promises: a pod can be probed from its IP on, and a container that
// restarts is a new instance; an order that makes fewer stops the very pods it
// names; a failure to ask the cluster is reported, with the last known list,
// and is made good without a restart; two services, revisions or Caddys over
// one workload do not fight, and neither do a HorizontalPodAutoscaler and
// Usher: it says so and scales from zero and to zero only. A service at rest
// costs no goroutine and no timer of its own.
//
// Where instances are Jobs it makes one for each start, and deletes it when the
// instance is to stop.
//
// It never creates or deletes another workload, never deletes a pod of another
// workload or another pod of the same name, never changes the pod template but
// when asked to restart, and never sends anything to the cluster when a
// configuration is merely loaded and checked.
//
// It speaks to the cluster through the dynamic client alone. The typed clients
// would bring ten times the weight, and could not scale custom resources.
package kubernetes
