package admin

import (
	"net/http"
	"strconv"

	"github.com/caddy-usher/usher/async"
	"github.com/caddy-usher/usher/caddymodule/answer"
	"github.com/caddy-usher/usher/caddymodule/hub"
)

// mostTasks is the longest page of tasks.
const mostTasks = 1000

// tasksOf returns what executes the stored requests.
func tasksOf(h *hub.Hub) (*hub.Tasks, error) {
	if h != nil {
		if t := h.Tasks(); t != nil {
			return t, nil
		}
	}
	return nil, answer.ApiError(http.StatusNotFound, "no requests are stored: no configuration has had the option async")
}

func listTasks(w http.ResponseWriter, r *http.Request, h *hub.Hub, _ *hub.Service, _ string) error {
	t, err := tasksOf(h)
	if err != nil {
		return err
	}
	query := r.URL.Query()
	f := async.Filter{Queue: query.Get("service"), After: query.Get("after")}
	if name := query.Get("state"); name != "" {
		if f.State, err = hub.TaskStateOf(name); err != nil {
			return answer.ApiError(http.StatusBadRequest, "%v", err)
		}
	}
	if limit := query.Get("limit"); limit != "" {
		if f.Limit, err = strconv.Atoi(limit); err != nil || f.Limit < 1 || f.Limit > mostTasks {
			return answer.ApiError(http.StatusBadRequest, "limit must be a number from 1 to %d, not '%s'", mostTasks, limit)
		}
	}
	list, err := t.List(r.Context(), f)
	if err != nil && f.After != "" {
		return answer.ApiError(http.StatusBadRequest, "%v", err)
	}
	if err != nil {
		return answer.OperationError(err)
	}
	return answer.WriteJSON(w, list)
}

func showTask(w http.ResponseWriter, r *http.Request, h *hub.Hub, _ *hub.Service, id string) error {
	t, err := tasksOf(h)
	if err != nil {
		return err
	}
	task, err := t.Store.Get(r.Context(), id)
	if err != nil {
		return answer.OperationError(err)
	}
	return answer.WriteJSON(w, hub.SummarizeTask(task))
}

// operateTask cancels a task, or lets it be tried again.
func operateTask(what string) func(http.ResponseWriter, *http.Request, *hub.Hub, *hub.Service, string) error {
	return func(w http.ResponseWriter, r *http.Request, h *hub.Hub, _ *hub.Service, id string) error {
		t, err := tasksOf(h)
		if err != nil {
			return err
		}
		if err := answer.NoBody(r); err != nil {
			return err
		}
		var task async.Task
		if what == "cancel" {
			task, err = t.Dispatcher.Cancel(r.Context(), id)
		} else {
			task, err = t.Store.Retry(r.Context(), id)
		}
		if err != nil {
			return answer.OperationError(err)
		}
		return answer.WriteJSON(w, hub.SummarizeTask(task))
	}
}

func purgeTask(w http.ResponseWriter, r *http.Request, h *hub.Hub, _ *hub.Service, id string) error {
	t, err := tasksOf(h)
	if err != nil {
		return err
	}
	if err := answer.NoBody(r); err != nil {
		return err
	}
	if err := t.Store.Purge(r.Context(), id); err != nil {
		return answer.OperationError(err)
	}
	return answer.WriteJSON(w, map[string]string{"purged": id})
}
