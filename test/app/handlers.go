package main

import (
	"fmt"
	"html"
	"io"
	"net/http"
	"os"
	"strconv"
	"syscall"
	"time"
)

// newHandler returns everything that the instance serves. deafen closes the
// listener.
func newHandler(o options, deafen func()) http.Handler {
	counted := new(census)
	mux := http.NewServeMux()
	mux.HandleFunc("/", identify)
	mux.HandleFunc("/login", login)
	mux.HandleFunc("/page", page)
	mux.HandleFunc("/json", writeJSON)
	mux.HandleFunc("/echo", echo)
	mux.HandleFunc("/sleep", sleep)
	mux.HandleFunc("/work/", work)
	mux.HandleFunc("/burn", burn)
	mux.HandleFunc("/hold", hold)
	mux.HandleFunc("/status", answerStatus)
	mux.HandleFunc("/slow-body", slowBody)
	mux.HandleFunc("/bulk", bulk)
	mux.HandleFunc("/sse", events)
	mux.HandleFunc("/ws", websocket)
	mux.HandleFunc("/hints", hints)
	mux.HandleFunc("/progress", progress)
	mux.HandleFunc("/later", answerLater)
	mux.HandleFunc("/abort", abort)
	mux.HandleFunc("/reset", reset)
	mux.HandleFunc("/early", early)
	mux.HandleFunc("/fickle", fickle)
	mux.HandleFunc("/usher-error", ownUsherError)
	mux.HandleFunc("/env", environment)
	mux.HandleFunc("/say", say)
	mux.HandleFunc("/crash", func(http.ResponseWriter, *http.Request) { os.Exit(exit(5)) })
	mux.HandleFunc("/crash-once", crashOnce)
	mux.HandleFunc("/last", last)
	mux.HandleFunc("/hog", hog)
	mux.HandleFunc("/deafen", func(w http.ResponseWriter, r *http.Request) {
		deafen()
		identify(w, r)
	})
	mux.HandleFunc("/count", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, counted.highest())
	})

	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Health checks are Usher's own requests: they hold no slot and are
		// not part of the census.
		if r.URL.Path == "/healthz" {
			health(w, o)
			return
		}
		counted.enter(r)
		defer counted.leave(r)
		w.Header().Set("X-Instance", os.Getenv("USHER_INSTANCE"))
		w.Header().Set("X-Pid", strconv.Itoa(os.Getpid()))
		if o.slowWhile != "" {
			if _, err := os.Stat(o.slowWhile); err == nil && !pause(r.Context().Done(), slowness) {
				return
			}
		}
		if o.status != 0 {
			http.Error(w, http.StatusText(o.status), o.status)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// slowness is how much later -slow-while makes an answer.
const slowness = 500 * time.Millisecond

func health(w http.ResponseWriter, o options) {
	if o.failHealth != "" {
		if _, err := os.Stat(o.failHealth); err != nil {
			http.Error(w, "not yet", http.StatusServiceUnavailable)
			return
		}
	}
	fmt.Fprintln(w, "fine")
}

// identify names the instance and process that answer.
func identify(w http.ResponseWriter, _ *http.Request) {
	fmt.Fprintf(w, "instance %s pid %d\n", os.Getenv("USHER_INSTANCE"), os.Getpid())
}

// login begins a session with the key that ?key= names, as the header Session of
// the answer says.
func login(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Session", r.FormValue("key"))
	identify(w, r)
}

// say writes a line to the standard output.
func say(_ http.ResponseWriter, r *http.Request) { fmt.Println(r.URL.Query().Get("line")) }

// page is something for a browser: long enough to be scrolled, with a part
// that a fragment can name, and with what was asked for. It asks for nothing.
func page(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprintf(w, `<!doctype html><html lang="en"><title>The page</title><link rel="icon" href="data:,">
<h1>The page</h1><p id="uri">%s</p><p id="pid">%d</p><div style="height:300vh"></div><h2 id="part">The part</h2><div style="height:300vh"></div></html>`,
		html.EscapeString(r.RequestURI), os.Getpid())
}

func writeJSON(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"pid":%d,"uri":%q}`+"\n", os.Getpid(), r.RequestURI)
}

func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		// Hand the failure on: a client that left in the middle of its body
		// must not look like one that sent a shorter one.
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("X-Method", r.Method)
	w.Header().Set("X-Proto", r.Proto)
	_, _ = w.Write(body)
}

// sleep answers after ?d=.
func sleep(w http.ResponseWriter, r *http.Request) {
	d, err := time.ParseDuration(r.FormValue("d"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if pause(r.Context().Done(), d) {
		identify(w, r)
	}
}

// work is a task: after ?d= it answers with the body of the request and the status
// ?code=. The answer to the first attempt has the status ?first=, if there is one.
func work(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	d, err := time.ParseDuration(query.Get("d"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil || !pause(r.Context().Done(), d) {
		panic(http.ErrAbortHandler) // the other side has gone
	}
	status := query.Get("code")
	if first := query.Get("first"); first != "" && attemptOf(r) == 1 {
		status = first
	}
	if code, err := strconv.Atoi(status); err == nil {
		w.WriteHeader(code)
	}
	_, _ = w.Write(body)
}

// burn answers at once, and works for a time ?d= in the background.
func burn(w http.ResponseWriter, r *http.Request) {
	d, err := time.ParseDuration(r.FormValue("d"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	go func() {
		for until := time.Now().Add(d); time.Now().Before(until); {
		}
	}()
	identify(w, r)
}

// hold answers as soon as the file ?gate= exists.
func hold(w http.ResponseWriter, r *http.Request) {
	if await(r.Context().Done(), r.FormValue("gate")) {
		identify(w, r)
	}
}

// answerStatus answers with ?code=.
func answerStatus(w http.ResponseWriter, r *http.Request) {
	code, err := strconv.Atoi(r.FormValue("code"))
	if err != nil || code < 200 || code > 599 {
		code = http.StatusBadRequest
	}
	w.WriteHeader(code)
	fmt.Fprintln(w, http.StatusText(code))
}

// slowBody writes ?n= lines, one each ?d=.
func slowBody(w http.ResponseWriter, r *http.Request) {
	n, d := 10, 20*time.Millisecond
	if v, err := strconv.Atoi(r.FormValue("n")); err == nil {
		n = v
	}
	if v, err := time.ParseDuration(r.FormValue("d")); err == nil {
		d = v
	}
	for i := range n {
		fmt.Fprintf(w, "line %d\n", i)
		_ = http.NewResponseController(w).Flush()
		if !pause(r.Context().Done(), d) {
			return
		}
	}
}

// bulk answers with ?n= bytes, each of which tells its place: the low byte of
// its offset, plus the number of its block of 256.
func bulk(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.Atoi(r.FormValue("n"))
	if err != nil || n < 0 {
		http.Error(w, "?n= is no number of bytes", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(n))
	block := make([]byte, 256)
	for from := 0; from < n; from += len(block) {
		for i := range block {
			block[i] = byte(i + from/256)
		}
		if _, err := w.Write(block[:min(len(block), n-from)]); err != nil {
			return
		}
	}
}

// events sends Server-Sent Events, one each ?d=, until the client goes, or
// until ?n= were sent.
func events(w http.ResponseWriter, r *http.Request) {
	n, d := -1, 20*time.Millisecond
	if v, err := strconv.Atoi(r.FormValue("n")); err == nil {
		n = v
	}
	if v, err := time.ParseDuration(r.FormValue("d")); err == nil {
		d = v
	}
	w.Header().Set("Content-Type", "text/event-stream")
	for i := 0; i != n; i++ {
		fmt.Fprintf(w, "event: tick\ndata: %d\n\n", i)
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
		if !pause(r.Context().Done(), d) {
			return
		}
	}
}

// hints sends an informational answer before the final one.
func hints(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Link", "</style.css>; rel=preload; as=style")
	w.WriteHeader(http.StatusEarlyHints)
	w.Header().Del("Link")
	identify(w, r)
}

// progress tells that it is so far, ?percent=, and answers as soon as the file ?gate=
// exists.
func progress(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Usher-Progress", r.FormValue("percent"))
	w.WriteHeader(http.StatusProcessing)
	w.Header().Del("Usher-Progress")
	hold(w, r)
}

// answerLater answers 202, with the Location ?at= if it is given: it is never done.
func answerLater(w http.ResponseWriter, r *http.Request) {
	if at := r.URL.Query().Get("at"); at != "" {
		w.Header().Set("Location", at)
	}
	w.WriteHeader(http.StatusAccepted)
	fmt.Fprintln(w, "later")
}

// abort closes the connection in the middle of the body.
func abort(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Length", "1000")
	fmt.Fprint(w, "the beginning")
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// reset closes the connection without any answer, after the request was read.
func reset(http.ResponseWriter, *http.Request) {
	panic(http.ErrAbortHandler)
}

// early answers with the status ?code= before it has read the body, as an
// instance does that decides by the header alone.
func early(w http.ResponseWriter, r *http.Request) {
	code, err := strconv.Atoi(r.URL.Query().Get("code"))
	if err != nil {
		code = http.StatusUnauthorized
	}
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		// HTTP/2 does not mind.
		w.WriteHeader(code)
		return
	}
	defer conn.Close()
	fmt.Fprintf(buf, "HTTP/1.1 %d %s\r\nX-Instance: %s\r\nConnection: close\r\nContent-Length: 5\r\n\r\nearly", code, http.StatusText(code), os.Getenv("USHER_INSTANCE"))
	if buf.Flush() == nil {
		_, _ = io.Copy(io.Discard, buf)
	}
}

// fickle reads ?n= bytes of the body and closes the connection without an
// answer, if the file ?once= exists. It removes the file, so that the next
// attempt gets its body back.
func fickle(w http.ResponseWriter, r *http.Request) {
	if os.Remove(r.URL.Query().Get("once")) != nil {
		echo(w, r)
		return
	}
	if n, err := strconv.ParseInt(r.URL.Query().Get("n"), 10, 64); err == nil {
		_, _ = io.CopyN(io.Discard, r.Body, n)
	}
	panic(http.ErrAbortHandler)
}

// crashOnce ends the process with status 1 if the file ?once= exists, which it
// removes.
func crashOnce(w http.ResponseWriter, r *http.Request) {
	if os.Remove(r.FormValue("once")) == nil {
		os.Exit(exit(1))
	}
	identify(w, r)
}

// last answers. Then the process ends by itself, with status 0.
func last(w http.ResponseWriter, r *http.Request) {
	identify(w, r)
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		panic(err)
	}
}

// ownUsherError claims to be an answer of Usher's.
func ownUsherError(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Usher-Error", "queue_full")
	identify(w, r)
}

// hog takes memory until there is none.
func hog(_ http.ResponseWriter, r *http.Request) {
	var all [][]byte
	for r.Context().Err() == nil {
		piece := make([]byte, 1<<20)
		for i := 0; i < len(piece); i += 4096 {
			piece[i] = 1
		}
		all = append(all, piece)
	}
	fmt.Println("the client has gone;", len(all), "MiB were taken")
}

func environment(w http.ResponseWriter, _ *http.Request) {
	for _, kv := range os.Environ() {
		fmt.Fprintln(w, kv)
	}
	if dir, err := os.Getwd(); err == nil {
		fmt.Fprintln(w, "cwd="+dir)
	}
	fmt.Fprintf(w, "args=%q\n", os.Args[1:])
}
