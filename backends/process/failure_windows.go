package process

import (
	"errors"
	"syscall"

	"github.com/caddy-usher/usher/scaler"
)

// ERROR_BAD_EXE_FORMAT and ERROR_SHARING_VIOLATION.
const (
	errBadExeFormat     = syscall.Errno(193)
	errSharingViolation = syscall.Errno(32)
)

func isNoExec(err error) bool { return errors.Is(err, errBadExeFormat) }
func isBusy(err error) bool   { return errors.Is(err, errSharingViolation) }

// quotaFailure knows no limits of Windows by their errors.
func quotaFailure(error) *scaler.Failure { return nil }
