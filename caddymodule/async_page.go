package caddymodule

import (
	"bytes"
	"context"
	"crypto/rand"
	_ "embed"
	"fmt"
	"html/template"
	"net/http"
	"strconv"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-usher/usher/async"
	"github.com/caddy-usher/usher/caddymodule/answer"
	"github.com/caddy-usher/usher/caddymodule/hub"
)

const (
	// taskPageRefresh is how often the page of a task that has not ended asks again,
	// in seconds.
	taskPageRefresh = 3

	// taskPageAhead is how many tasks are looked at to tell the place of one.
	taskPageAhead = 100

	// taskPagePolicy lets the page of a task have its own style, and nothing else.
	taskPagePolicy = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'; img-src data:; style-src 'nonce-%s'"
)

//go:embed async_page.html
var taskPageHTML string

var taskPageTemplate = template.Must(template.New("a task").Parse(pageHeadHTML + taskPageHTML))

// taskPage is a task as a browser shows it. Its texts are written for HTML.
type taskPage struct {
	Title, Status, Reason, Place, Detail, Attempts, Open, Hint, ProgressLabel template.HTML

	Language, Nonce string

	// Waiting is true until the task has ended, and Progress how far it is in
	// percent; empty if that is not known.
	Waiting  bool
	Progress string

	// Result is where the result is, as seen from the page. Empty: there is none.
	Result string
}

// describe returns the page of a task. ahead is how many tasks are before it, and due
// how long it takes until there may be another attempt.
func (w *translation) describe(t async.Task, ahead int, due time.Duration) taskPage {
	p := taskPage{
		Title: answer.ForeignHTML(t.Queue), Status: answer.ForeignHTML(w.task.states[t.State]), Reason: answer.ForeignHTML(t.Reason),
		Language: w.language, Waiting: !t.State.Final(),
		Open: answer.ForeignHTML(w.task.open), Hint: answer.ForeignHTML(w.task.hint), ProgressLabel: answer.ForeignHTML(w.progress),
	}
	if t.Cancelling {
		p.Status = answer.ForeignHTML(w.task.cancelling)
	}
	if t.Attempt > 0 {
		p.Attempts = answer.ForeignHTML(fmt.Sprintf(w.task.attempts, t.Attempt))
	}
	switch {
	case t.State == async.Pending && t.Attempt > 0 && due > 0:
		p.Detail = answer.ForeignHTML(fmt.Sprintf(w.tryAgain, w.duration(due)))
	case t.State == async.Pending:
		p.Place = answer.ForeignHTML(w.placeOf(ahead, taskPageAhead))
	case t.State == async.Running && t.Progress >= 0:
		p.Progress = strconv.Itoa(t.Progress)
	case t.State.Final() && t.Status != 0:
		p.Result = "./" + t.ID + "/result"
	}
	return p
}

// tasksAhead counts the tasks that were handed in before one and wait, too;
// taskPageAhead at most.
func tasksAhead(ctx context.Context, tasks *hub.Tasks, t async.Task) (int, error) {
	page, err := tasks.Store.List(ctx, async.Filter{Queue: t.Queue, State: async.Pending, Limit: taskPageAhead})
	if err != nil {
		return 0, err
	}
	for k, other := range page.Tasks {
		if other.ID == t.ID {
			return k, nil
		}
	}
	if page.Next == "" {
		return 0, nil // it has begun meanwhile
	}
	return taskPageAhead, nil
}

// writeTaskPage answers a browser with the page of a task.
func (h *Handler) writeTaskPage(w http.ResponseWriter, r *http.Request, tasks *hub.Tasks, t async.Task) error {
	ahead := 0
	if t.State == async.Pending {
		var err error
		if ahead, err = tasksAhead(r.Context(), tasks, t); err != nil {
			return h.refuseTask(w, r, err)
		}
	}
	page := translationFor(answer.Preferences(r.Header, "Accept-Language")).describe(t, ahead, time.Until(t.Due))
	page.Nonce = rand.Text()
	var body bytes.Buffer
	if err := taskPageTemplate.Execute(&body, page); err != nil {
		h.service.Log().Error("the page of a task cannot be filled in: what people see is cut short", zap.Error(err))
	}
	w = answer.Seal(w)
	header := w.Header()
	if page.Waiting {
		header.Set("Refresh", strconv.Itoa(taskPageRefresh)+";url="+selfReference(originalURI(r)))
	}
	header.Set("Cache-Control", "no-store")
	describePage(header, page.Language, fmt.Sprintf(taskPagePolicy, page.Nonce), body.Len())
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body.Bytes()) // the client may be gone
	}
	return nil
}
