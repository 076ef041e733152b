package process

import "os"

// readNow has nothing to do: the pipes of Windows take no deadline, so that
// nobody asks for what is there now.
func readNow(*os.File, []byte) int { return 0 }
