package process

import "os"

// ownedByCaddy trusts the temporary directory, which is the user's own.
func ownedByCaddy(os.FileInfo) bool { return true }

func giveDir(string, *account) error { return nil }
