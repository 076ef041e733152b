//go:build !linux

package file

var fillDisk func(place string) (lift func() error, err error)
