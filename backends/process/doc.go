// Package process runs the instances of a service as processes of this
// machine. It is the backend that needs nothing else.
//
// It owns the module usher.backends.process: its configuration and its checks
// at load; the ports, sockets and passed listeners that instances serve on;
// the one goroutine that forks; the watch over every process through its
// pidfd; the lines that instances write; and the records that let a later
// Caddy adopt what an earlier one kept, and end what it left behind.
//
// It promises: a start that cannot succeed says so at once, with the limit or
// the file that stood in the way; an end is seen from the process itself, not
// from its pipes; a stop is the stop signal to the whole process group and
// later KILL, and what the instance forked away ends with it; when Caddy is
// killed its processes die too (Linux, on_exit stop), and what they had forked
// away carries USHER_INSTANCE in its environment and is ended by the next
// Caddy. With on_exit keep they live on, and the next Caddy adopts them without
// a restart if they belong to a service and revision that it runs, or ends
// them; of several Caddys that could, one does. A service without instances costs no goroutine, timer or watch.
//
// It never touches a process by its pid alone, never reaps a child that it
// did not start, never makes an instance wait for the log (the pipe of one that
// writes more than 8 MiB a second without end is read at that pace), never builds a command from a request, and never stops an instance that it
// was not told to stop, the end of Caddy aside.
//
// On Linux it needs pidfds (Linux 5.4). On other systems it runs without
// parent-death signal, port owner check, records and `listen fd`: a process that
// left its group is not found, and one that was kept is not found again; on Windows there are no process groups and
// a stop is a kill.
package process
