// Package marathonsim is a Marathon to test against: its API over HTTP from
// three nodes, one of which leads, and behind them an engine that starts real
// processes on simulated agents. It is written after Marathon's source, not
// after any client of it, and shares no types with one.
//
// The README beside this file says what is simulated, what is left out, and
// where the simulator knows less than a real Marathon.
//
//	sim, err := marathonsim.New(marathonsim.Config{Profile: "1.9"})
//	defer sim.Close()
//	err = sim.CreateApp(`{"id":"/web","cmd":"exec ./serve -p $PORT0","instances":0}`)
//	... sim.URLs() ...
//
// The simulator does not help: no answer is given because a test expects it.
// Events are late, out of step with what the API shows, and lost when a
// fault says so; a task is RUNNING when there is a process, whether or not it
// listens; ports come back soon; a deployment holds its app until the last
// victim is dead.
package marathonsim
