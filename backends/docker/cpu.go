package docker

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/moby/moby/client"
)

// TellsCPU says that the engine knows how much a container works.
func (b *Backend) TellsCPU() bool { return true }

// statsMost is how much is read of the engine's figures of a container.
const statsMost = 1 << 20

// CPUTime returns how much time of a processor the container of an instance has
// used, with all its processes.
func (r *runner) CPUTime(ctx context.Context, id string) (time.Duration, error) {
	m, _, _ := r.current(id)
	if m == nil {
		return 0, errGone
	}
	c, err := r.engine.api()
	if err != nil {
		return 0, err
	}
	res, err := c.ContainerStats(ctx, m.id, client.ContainerStatsOptions{})
	if err != nil {
		return 0, callFailure(err)
	}
	defer res.Body.Close()
	var stats struct {
		CPU struct {
			Usage struct {
				Total uint64 `json:"total_usage"` // in nanoseconds
			} `json:"cpu_usage"`
		} `json:"cpu_stats"`
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, statsMost)).Decode(&stats); err != nil {
		return 0, fmt.Errorf("container %s: the engine's figures: %w", m.id, err)
	}
	return time.Duration(stats.CPU.Usage.Total), nil
}
