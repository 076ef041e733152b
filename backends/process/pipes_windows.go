package process

import "os"

// readNow does nothing: pipes on Windows take no deadline, so it is not called.
func readNow(*os.File, []byte) int { return 0 }
