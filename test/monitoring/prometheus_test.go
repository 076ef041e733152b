package monitoring

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

const (
	// soon is how long a test waits for what should happen soon.
	soon = 30 * time.Second

	variable = "USHER_TEST_PROMETHEUS"
	required = "required"
)

func TestMain(m *testing.M) { harness.Main(m) }

// program returns the path of a program of Prometheus, or skips the test.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	switch {
	case err == nil:
		return path
	case os.Getenv(variable) == required:
		t.Fatal(err)
	default:
		t.Skipf("no Prometheus is installed: %v", err)
	}
	return ""
}

// prometheus is a server that scrapes Caddy.
type prometheus struct {
	t   *testing.T
	url string
}

// startPrometheus scrapes c often and evaluates the rules as often. It ends
// with the test.
func startPrometheus(t *testing.T, c *harness.Caddy, rules string) *prometheus {
	t.Helper()
	path := program(t, "prometheus")
	write := func(name, text string) string {
		t.Helper()
		if err := os.WriteFile(c.Path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return c.Path(name)
	}
	config := write("prometheus.yml", fmt.Sprintf(`
global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}
rule_files: [%s]
scrape_configs:
- job_name: caddy
  static_configs: [{targets: [%q]}]
`, write("rules.yml", rules), c.AdminAddr))
	log, err := os.Create(c.Path("prometheus.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "--config.file="+config, "--storage.tsdb.path="+c.Path("tsdb"),
		"--web.listen-address="+c.SpareAddr, "--log.level=warn")
	cmd.Dir, cmd.Stdout, cmd.Stderr = c.Dir, log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		log.Close()
		if t.Failed() {
			text, _ := os.ReadFile(c.Path("prometheus.log"))
			t.Logf("Prometheus's log:\n%s", text)
		}
	})
	p := &prometheus{t: t, url: "http://" + c.SpareAddr}
	harness.Eventually(t, soon, func() bool {
		resp, err := http.Get(p.url + "/-/ready")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}, "Prometheus is ready")
	return p
}

// get asks the API of Prometheus.
func (p *prometheus) get(path string, into any) error {
	resp, err := http.Get(p.url + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer := struct {
		Status, Error string
		Data          json.RawMessage
	}{}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return err
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s: %s", answer.Status, answer.Error)
	}
	return json.Unmarshal(answer.Data, into)
}

// sample is one series of an answer.
type sample struct {
	Metric map[string]string
	Value  [2]any
}

func (s *sample) value() float64 {
	text, _ := s.Value[1].(string)
	v, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return 0
	}
	return v
}

// query evaluates an expression now.
func (p *prometheus) query(expr string) ([]sample, error) {
	var data struct{ Result []sample }
	err := p.get("/api/v1/query?query="+url.QueryEscape(expr), &data)
	return data.Result, err
}

// firing returns the services of the alerts that fire, by the alert's name.
func (p *prometheus) firing() (map[string][]string, error) {
	var data struct {
		Alerts []struct {
			Labels      map[string]string
			Annotations map[string]string
			State       string
		}
	}
	err := p.get("/api/v1/alerts", &data)
	all := make(map[string][]string)
	for _, a := range data.Alerts {
		if a.State == "firing" {
			all[a.Labels["alertname"]] = append(all[a.Labels["alertname"]], a.Labels["service"])
			if text := a.Annotations["summary"] + a.Annotations["description"]; text == "" || strings.Contains(text, "<error") {
				p.t.Errorf("the words of %s: %q", a.Labels["alertname"], text)
			}
		}
	}
	return all, err
}

// deployed reads a file of deploy/.
func deployed(t *testing.T, path ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(append([]string{"..", "..", "deploy"}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
