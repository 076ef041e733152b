//go:build linux

package kube

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"time"
)

// A Client asks the API server as one user. It is as small as it can be: what
// Usher does must not be measured with Usher's own tools.
type Client struct {
	base, token, config string

	http http.Client
}

var tokenLine = regexp.MustCompile(`token: (\S+?)}`)

func newClient(config, ca string) (*Client, error) {
	data, err := os.ReadFile(config)
	if err != nil {
		return nil, err
	}
	token := tokenLine.FindSubmatch(data)
	if token == nil {
		return nil, errors.New("no token in " + config)
	}
	cert, err := os.ReadFile(ca)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(cert)
	c := &Client{base: "https://" + apiIP, token: string(token[1]), config: config}
	c.http.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, MaxIdleConnsPerHost: 10}
	return c, nil
}

// Do sends a request and returns the whole answer.
func (c *Client) Do(method, path, contentType string, body []byte) (status int, answer []byte, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	res, err := c.send(ctx, method, path, contentType, body)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	answer, err = io.ReadAll(res.Body)
	return res.StatusCode, answer, err
}

func (c *Client) send(ctx context.Context, method, path, contentType string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	req.Header.Set("Accept", "application/json")
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	return c.http.Do(req)
}

// Get reads an object.
func (c *Client) Get(path string, into any) error {
	status, body, err := c.Do(http.MethodGet, path, "", nil)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("GET %s: %d %s", path, status, body)
	}
	return json.Unmarshal(body, into)
}

// Merge patches an object.
func (c *Client) Merge(path, patch string) error {
	status, body, err := c.Do(http.MethodPatch, path, "application/merge-patch+json", []byte(patch))
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("PATCH %s: %d %s", path, status, body)
	}
	return err
}

// Delete deletes an object.
func (c *Client) Delete(path string) error {
	status, body, err := c.Do(http.MethodDelete, path, "", nil)
	if err == nil && status/100 != 2 {
		err = fmt.Errorf("DELETE %s: %d %s", path, status, body)
	}
	return err
}

// Watch calls f with every change of the objects at the path, until ctx ends.
// When the server ends the watch it begins anew: with RESET, then all objects
// that there are, then a BOOKMARK.
func (c *Client) Watch(ctx context.Context, path string, f func(kind string, object json.RawMessage)) {
	for ctx.Err() == nil {
		res, err := c.send(ctx, http.MethodGet, path+"?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true", "", nil)
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		f("RESET", nil)
		lines := bufio.NewScanner(res.Body)
		lines.Buffer(nil, 4<<20)
		for lines.Scan() {
			var event struct {
				Type   string
				Object json.RawMessage
			}
			if json.Unmarshal(lines.Bytes(), &event) == nil {
				f(event.Type, event.Object)
			}
		}
		res.Body.Close()
	}
}

// Kubectl runs kubectl as the user of this client.
func (c *Client) Kubectl(stdin string, args ...string) (string, error) {
	cmd := exec.Command("kubectl", append([]string{"--kubeconfig", c.config}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}
