// Package kubeaccess finds out how to reach a Kubernetes cluster, and makes calls of
// its API, for the parts of Usher that do: the backend and the coordinator.
//
// It owns where the configuration is looked for, how calls are written and answers
// read, and what client-go logs on its own: that goes to Caddy's log. It makes no
// call that it is not told to, and keeps nothing.
package kubeaccess

import (
	"errors"
	"os"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Load returns how to reach a cluster, and the namespace that goes with it. If
// neither a kubeconfig nor a context is given and this is a pod, they are those
// of the pod. Else they are those of the kubeconfig, or of the files that
// KUBECONFIG names, or of ~/.kube/config, and of the context or the current one.
func Load(kubeconfig, context string) (*rest.Config, string, error) {
	config, namespace, err := find(kubeconfig, context)
	if err != nil {
		return nil, "", err
	}
	config.UserAgent = "usher"
	config.WarningHandler = rest.NoWarnings{}
	return config, namespace, nil
}

func find(kubeconfig, context string) (*rest.Config, string, error) {
	if kubeconfig == "" && context == "" {
		config, err := rest.InClusterConfig()
		if err == nil {
			space, err := os.ReadFile("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
			return config, strings.TrimSpace(string(space)), err
		}
		if !errors.Is(err, rest.ErrNotInCluster) {
			return nil, "", err
		}
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	found := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: context})
	config, err := found.ClientConfig()
	if err != nil {
		return nil, "", err
	}
	space, _, err := found.Namespace()
	return config, space, err
}

// CheckNamespace refuses what no namespace can be called. The empty name passes:
// it stands for that of the access.
func CheckNamespace(namespace string) error {
	if namespace == "" {
		return nil
	}
	if why := validation.IsDNS1123Label(namespace); len(why) > 0 {
		return errors.New("namespace " + namespace + ": " + strings.Join(why, "; "))
	}
	return nil
}
