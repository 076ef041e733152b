// Package docker tests the docker backend against a real Docker Engine and a real
// Podman, and Usher's image in them.
package docker
