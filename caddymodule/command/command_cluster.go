package command

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-usher/usher/caddymodule/hub"
)

// cluster shows the cluster of the Caddy that is asked.
func (c *console) cluster([]string) error {
	var st hub.ClusterStatus
	raw, err := c.ask(http.MethodGet, "cluster", nil, &st)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(raw)
	}
	return c.printCluster(st)
}

func (c *console) printCluster(st hub.ClusterStatus) error {
	lease := "none: requests wait"
	if !st.Isolated {
		lease = (time.Duration(st.LeaseMS) * time.Millisecond).String()
	}
	if err := c.table("", [][]string{
		{"CLUSTER", st.Name}, {"COORDINATOR", st.Coordinator}, {"VIEW", strconv.FormatUint(st.View, 10)}, {"LEASE", lease},
	}); err != nil {
		return err
	}
	rows := [][]string{{"MEMBER", ""}}
	for _, m := range st.Members {
		var is []string
		for _, w := range []struct {
			word string
			yes  bool
		}{
			{"this Caddy", m.Member == st.Member && !m.Lost},
			{"leads", m.Leader},
			{"lost, and may have requests inside", m.Lost},
			{"connected", m.Connected},
		} {
			if w.yes {
				is = append(is, w.word)
			}
		}
		rows = append(rows, []string{m.Member, strings.Join(is, ", ")})
	}
	if err := c.print("\n"); err != nil {
		return err
	}
	if err := c.table("", rows); err != nil || len(st.Services) == 0 {
		return err
	}
	rows = [][]string{{"SERVICE", "SLOTS HERE", "LOST", "HANDED OVER", "IN USE", "WAITING", "DEFINED OTHERWISE BY"}}
	leads := slices.ContainsFunc(st.Members, func(m hub.ClusterMember) bool { return m.Member == st.Member && m.Leader })
	for _, s := range st.Services {
		lost, handedOver := "-", "-" // the leader alone knows
		if leads {
			lost, handedOver = strconv.Itoa(s.Lost), strconv.Itoa(s.Handovers)
		}
		rows = append(rows, []string{s.Service, strconv.Itoa(s.Held), lost, handedOver, strconv.Itoa(s.InUse), strconv.Itoa(s.Waiting), strings.Join(s.Differs, ", ")})
	}
	if err := c.print("\n"); err != nil {
		return err
	}
	return c.table("", rows)
}

// forget says that a member has ended.
func (c *console) forget(args []string) error {
	var st hub.ClusterStatus
	raw, err := c.ask(http.MethodPost, "cluster/forget", map[string]string{"member": args[0]}, &st)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(raw)
	}
	return c.print("The slots of %s are used by the others from now on.\n", harmless(args[0]))
}
