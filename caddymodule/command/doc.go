// Package command is `caddy usher`: it shows and operates the services of a
// running Caddy.
//
// It owns the commands, their flags, what they print and their exit status. It
// promises that nothing which a platform or a process wrote does anything in a
// terminal. It knows a running Usher through the admin API alone, whose answers
// it reads in the form that hub gives them. Definitions in the form of a Caddyfile
// it reads with the parsers of the global option.
package command
