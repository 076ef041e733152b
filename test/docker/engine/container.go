//go:build linux

package engine

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// Import makes an image of one program, /app, and directories for it.
func (e *Engine) Import(ctx context.Context, name, program string, changes ...string) error {
	binary, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, h := range []*tar.Header{
		{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777},
		{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "app", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(binary))},
	} {
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if h.Size > 0 {
			if _, err := w.Write(binary); err != nil {
				return err
			}
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	res, err := e.Client.ImageImport(ctx, client.ImageImportSource{Source: &layer, SourceName: "-"}, "docker.io/"+name,
		client.ImageImportOptions{Changes: append([]string{`ENTRYPOINT ["/app"]`}, changes...)})
	if err != nil {
		return err
	}
	defer res.Close()
	out, err := io.ReadAll(res)
	if err == nil && strings.Contains(string(out), `"error"`) {
		err = errors.New(string(out))
	}
	return err
}

// Containers returns all containers with these labels, or all.
func (e *Engine) Containers(ctx context.Context, labels ...string) ([]container.Summary, error) {
	filters := make(client.Filters)
	for _, l := range labels {
		filters = filters.Add("label", l)
	}
	res, err := e.Client.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: filters})
	return res.Items, err
}

// Clear removes all containers.
func (e *Engine) Clear(ctx context.Context) error {
	all, err := e.Containers(ctx)
	for _, c := range all {
		_, removal := e.Client.ContainerRemove(ctx, c.ID, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
		if removal != nil && !strings.Contains(removal.Error(), "already in progress") && !strings.Contains(removal.Error(), "No such container") {
			err = errors.Join(err, fmt.Errorf("container %s: %w", c.ID, removal))
		}
	}
	return err
}
