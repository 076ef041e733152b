//go:build linux

package kube

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"runtime"
	"strings"
)

// The images of every cluster. Both hold the test app and nothing else; the
// one that keeps a pod's namespaces alive just never listens.
const (
	AppImage   = "localhost/app:v1"
	pauseImage = "localhost/pause:v1"
)

// LoadImage gives all nodes an image that holds one static binary, under the
// path place.
func (c *Cluster) LoadImage(tag, binary, place string) error {
	path := c.path("images", "more.tar")
	if err := writeImage(path, tag, binary, place); err != nil {
		return err
	}
	for _, n := range c.Nodes {
		if err := n.ctr("images", "import", path); err != nil {
			return err
		}
	}
	return nil
}

// writeImage writes an image made from one static binary, as an archive that
// containerd can import. The binary is what it runs, with these arguments.
func writeImage(path, tag, binary, place string, args ...string) error {
	program, err := os.ReadFile(binary)
	if err != nil {
		return err
	}
	layer, err := archive(file{strings.TrimPrefix(place, "/"), 0o755, program})
	if err != nil {
		return err
	}
	layerID := digest(layer)
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"created":      "2000-01-01T00:00:00Z",
		"config": map[string]any{
			"Entrypoint": append([]string{place}, args...),
			"Env":        []string{"PATH=/"},
			"WorkingDir": "/",
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + layerID}},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]map[string]any{{
		"Config":   digest(config) + ".json",
		"RepoTags": []string{tag},
		"Layers":   []string{layerID + "/layer.tar"},
	}})
	if err != nil {
		return err
	}
	image, err := archive(
		file{digest(config) + ".json", 0o644, config},
		file{layerID + "/layer.tar", 0o644, layer},
		file{"manifest.json", 0o644, manifest},
	)
	if err != nil {
		return err
	}
	return os.WriteFile(path, image, 0o644)
}

type file struct {
	name string
	mode int64
	data []byte
}

func archive(files ...file) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		header := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), Typeflag: tar.TypeReg}
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), w.Close()
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
