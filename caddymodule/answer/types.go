package answer

// Types of content.
const (
	TypeProblem = "application/problem+json"
	TypeJSON    = "application/json"
	TypeHTML    = "text/html"
	TypeEvents  = "text/event-stream"
	TypePlain   = "text/plain"
)

// headerError is the header that carries the code of an answer of Usher's own.
const HeaderError = "Usher-Error"
