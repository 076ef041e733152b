// Package answer writes the answers that Usher gives itself.
//
// It owns their seal, which keeps the handlers around Usher from changing
// them, the forms of texts that come from elsewhere, JSON, and event streams.
//
// It promises: a header block of the site overrides nothing that an answer
// depends on; a text of a request, a platform or a process does nothing where
// it is shown; an event stream ends with its server, even if its client reads
// nothing.
//
// It never decides what an answer says.
package answer
