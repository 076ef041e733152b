//go:build !linux

package process

import "errors"

// adopt has nothing to do: without records nothing is found.
func (r *runner) adopt() {}

// confirmAdopted is never asked: nothing is adopted.
func (r *runner) confirmAdopted(*instance) error { return errors.ErrUnsupported }
