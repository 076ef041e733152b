package kubernetes

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/caddy-usher/usher/kubeaccess"
	"github.com/caddy-usher/usher/scaler"
)

// What Jobs are made of.
var (
	jobsResource = schema.GroupVersionResource{Group: "batch", Version: "v1", Resource: "jobs"}
	cronJobs     = schema.GroupVersionResource{Group: "batch", Version: "v1", Resource: "cronjobs"}
	podTemplates = schema.GroupVersionResource{Version: "v1", Resource: "podtemplates"}
)

// defaultTTL is how long a Job that has ended stays, unless its template or the
// configuration says something else.
const defaultTTL = time.Hour

// A job is what is kept of a Job.
type job struct {
	head
	labels   labels.Set
	created  time.Time
	deleting bool
	number   int
	complete bool
	failed   *reasoned
}

func newJob(u *unstructured.Unstructured) *job {
	j := &job{head: newHead(u), labels: u.GetLabels(), created: u.GetCreationTimestamp().Time, deleting: u.GetDeletionTimestamp() != nil}
	j.number, _ = strconv.Atoi(j.labels[numberKey])
	for _, c := range children(child(u.Object, "status"), "conditions") {
		if text(c, "status") != string(metav1.ConditionTrue) {
			continue
		}
		switch text(c, "type") {
		case "Complete":
			j.complete = true
		case "Failed":
			j.failed = &reasoned{text(c, "reason"), text(c, "message")}
		}
	}
	return j
}

// id names the instance that is the pod of j.
func (j *job) id() string {
	uid := strings.ReplaceAll(j.uid, "-", "")
	return j.name + "." + uid[:min(8, len(uid))]
}

// A template is what the Jobs of a service are made of.
type template struct {
	labels, annotations map[string]string
	spec                map[string]any // of a Job
}

// readTemplate reads the CronJob or, if there is none, the PodTemplate that the
// configuration names. It is read for each start, so a change holds from then on.
func (j *jobs) readTemplate(ctx context.Context) (*template, *scaler.Failure) {
	name := j.plan.workload.name
	cron, err := j.get(ctx, cronJobs, name)
	if err == nil {
		of := child(child(cron.Object, "spec"), "jobTemplate")
		meta := child(of, "metadata")
		return &template{stringsOf(meta, "labels"), stringsOf(meta, "annotations"), child(of, "spec")}, nil
	}
	if !apierrors.IsNotFound(err) {
		return nil, apiFailure(err, "get", "cronjob/"+name)
	}
	pod, err := j.get(ctx, podTemplates, name)
	if err != nil {
		return nil, apiFailure(err, "get", "cronjob/"+name+" or podtemplate/"+name)
	}
	return &template{spec: map[string]any{"template": child(pod.Object, "template")}}, nil
}

func (j *jobs) get(ctx context.Context, gvr schema.GroupVersionResource, name string) (u *unstructured.Unstructured, err error) {
	err = j.cluster.do(ctx, func(ctx context.Context, c *kubeaccess.Client) error {
		u, err = c.Objects(gvr, j.ns.name).Get(ctx, name)
		return err
	})
	return u, err
}

// job returns the Job of a number. Whatever the template says, it has one pod, which
// is started once, and goes some time after its end.
func (t *template) job(j *jobs, number int) *unstructured.Unstructured {
	marks := maps.Clone(j.labels)
	marks[numberKey] = strconv.Itoa(number)
	spec := (&unstructured.Unstructured{Object: map[string]any{"spec": t.spec}}).DeepCopy().Object["spec"].(map[string]any)
	// A failure that podFailurePolicy ignores does not count for backoffLimit: the Job
	// would get another pod.
	for _, name := range []string{"selector", "manualSelector", "suspend", "completionMode", "successPolicy", "podFailurePolicy", "backoffLimitPerIndex", "maxFailedIndexes"} {
		delete(spec, name)
	}
	spec["parallelism"], spec["completions"], spec["backoffLimit"] = int64(1), int64(1), int64(0)
	spec["podReplacementPolicy"] = "Failed"
	if j.plan.ttl > 0 {
		spec["ttlSecondsAfterFinished"] = int64(j.plan.ttl / time.Second)
	} else if spec["ttlSecondsAfterFinished"] == nil {
		spec["ttlSecondsAfterFinished"] = int64(defaultTTL / time.Second)
	}
	if j.plan.deadline > 0 {
		spec["activeDeadlineSeconds"] = int64(j.plan.deadline / time.Second)
	}
	pod := inside(spec, "template")
	inside(pod, "spec")["restartPolicy"] = "Never"
	meta := inside(pod, "metadata")
	delete(meta, "name")
	labels := inside(meta, "labels")
	for name, value := range marks {
		labels[name] = value
	}
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "batch/v1", "kind": "Job", "spec": spec}}
	u.SetName(j.name(number))
	all := maps.Clone(marks)
	for name, value := range t.labels {
		if _, own := marks[name]; !own {
			all[name] = value
		}
	}
	u.SetLabels(all)
	u.SetAnnotations(t.annotations)
	return u
}

// name is that of the Job of a number. It is the same for all Caddys that may make
// it, so none is made twice.
func (j *jobs) name(number int) string {
	prefix := strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
			return c
		case c >= 'A' && c <= 'Z':
			return c + 'a' - 'A'
		}
		return '-'
	}, j.env.Service)
	prefix = strings.Trim(prefix[:min(len(prefix), 30)], "-")
	if prefix != "" {
		prefix += "-"
	}
	return fmt.Sprintf("usher-%s%s-%d", prefix, mark(j.labels[serviceKey], j.labels[descriptionKey], j.labels[revisionKey])[:8], number)
}

// mark is a label's value that stands for words.
func mark(words ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(words, "\x00")))
	return hex.EncodeToString(sum[:8])
}

// inside returns the object in m under a key, which is made if there is none.
func inside(m map[string]any, key string) map[string]any {
	c := child(m, key)
	if c == nil {
		c = make(map[string]any)
		m[key] = c
	}
	return c
}

func stringsOf(m map[string]any, key string) map[string]string {
	all := make(map[string]string)
	for name, v := range child(m, key) {
		if s, ok := v.(string); ok {
			all[name] = s
		}
	}
	return all
}
