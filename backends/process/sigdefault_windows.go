package process

// defaultSignals has nothing to do: Windows has no signals to inherit.
func defaultSignals() {}
