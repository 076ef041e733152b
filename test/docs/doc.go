// Package docs has the tests of README.md and of the pages below docs/: every
// Caddyfile in them is provisioned, every command is run, every link leads
// somewhere, and every option of the Caddyfile is explained.
//
// A fenced block says by the words behind its language what becomes of it:
//
//	caddyfile                 a whole Caddyfile
//	caddyfile directive       what stands in a site
//	json config               routes, as the JSON page shows them
//	console                   commands and what they print, with the Caddyfile
//	                          that stands above in the same section
//	console example           the same with Caddyfile.example
//	console shown             what commands print, of a situation that is not
//	                          made here
//	... needs=a,b             only where these programs are (python3:x is a
//	                          module of Python)
//	... not-here=reason       not run by these tests; they count such blocks
//	text syntax               the options of a directive or block
//	python app.py             a file, for the commands of the same section
//	go test/docs/...          the text of that file of the repository
//
// In what commands print, `...` stands for anything within a line, and a line
// of its own `...` for any lines. Runs of spaces are as good as one.
package docs
