// Package option reads the values of Caddyfile options that several of Usher's
// directives have in common, and words the errors about them.
package option
