package marathonsim_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/marathonsim"
)

func TestRunningDoesNotMeanServing(t *testing.T) {
	s := start(t, quick())
	s.Inject(marathonsim.Fault{Kind: marathonsim.FaultNeverListens, App: "/a", Times: 1})
	s.create("/a", 1, "")
	if address := endpoint(running(s.settled("/a", 1))[0]); !refuses(address) {
		t.Error("it serves")
	}
}

func TestATaskDiesAndAnotherWedges(t *testing.T) {
	s := start(t, quick())
	s.Inject(marathonsim.Fault{Kind: marathonsim.FaultDies, App: "/dies", Times: 1, Delay: 10 * time.Millisecond})
	s.create("/dies", 1, "")
	eventually(t, "the first incarnation was killed from outside", func() bool {
		return s.get("/v2/apps/dies").str("app.lastTaskFailure.message") == "Command terminated with signal Killed"
	})
	s.create("/wedges", 1, "")
	first := s.settled("/wedges", 1)
	serves(t, endpoint(running(first)[0]))
	s.Inject(marathonsim.Fault{Kind: marathonsim.FaultWedges, App: "/wedges", Times: 1, Delay: time.Hour})
	s.want(200, "POST", "/v2/apps/wedges/restart", "")
	address := endpoint(running(s.renewed("/wedges", first))[0])
	serves(t, address)
	s.Advance(time.Hour)
	eventually(t, "it accepts, and does not answer", func() bool {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return false
		}
		defer conn.Close()
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, err = conn.Read(make([]byte, 1))
		return errors.Is(err, os.ErrDeadlineExceeded)
	})
}

func TestAPartitionedTaskServesOnAndComesBack(t *testing.T) {
	cfg := quick()
	cfg.Agents = 2
	s := start(t, cfg)
	s.create("/a", 1, "")
	task := running(s.settled("/a", 1))[0]
	serves(t, endpoint(task))
	agent := 0
	if s.Agents()[1] == task["host"] {
		agent = 1
	}
	s.Partition(agent)
	eventually(t, "it is unreachable, and has been replaced elsewhere", func() bool {
		a := s.get("/v2/apps/a")
		states := map[any]any{}
		for _, task := range a.list("app.tasks") {
			states[at(task, "host")] = at(task, "state")
		}
		return states[task["host"]] == "TASK_UNREACHABLE" && states[s.Agents()[1-agent]] == "TASK_RUNNING"
	})
	serves(t, endpoint(task))

	s.Heal(agent)
	eventually(t, "both are running", func() bool { return len(running(s.get("/v2/apps/a"))) == 2 })
	if a := s.get("/v2/apps/a"); a.num("app.instances") != 1 || a.num("app.tasksRunning") != 2 {
		t.Errorf("after the partition: %s", a.body)
	}
	s.Advance(6 * time.Minute) // only the check of the scale ends what is too much
	s.settled("/a", 1)
}

func TestAnUnreachableVictimDoesNotHoldADeployment(t *testing.T) {
	cfg := quick()
	cfg.Agents = 1
	s := start(t, cfg)
	s.create("/a", 1, `"unreachableStrategy":{"inactiveAfterSeconds":300,"expungeAfterSeconds":600}`)
	task := running(s.settled("/a", 1))[0]
	serves(t, endpoint(task))
	s.Partition(0)
	s.want(200, "PATCH", "/v2/apps/a", `{"instances":0}`)
	eventually(t, "the deployment is over", func() bool { return len(s.get("/v2/apps/a").list("app.deployments")) == 0 })
	serves(t, endpoint(task))
	s.Heal(0)
	eventually(t, "it is killed when it is back", func() bool { return refuses(endpoint(task)) })
	s.settled("/a", 0)
}

func TestALostAgentTakesItsTasksWithoutAWord(t *testing.T) {
	cfg := quick()
	cfg.Agents = 1
	s := start(t, cfg)
	s.create("/a", 1, "")
	task := running(s.settled("/a", 1))[0]
	serves(t, endpoint(task))
	s.Lose(0)
	eventually(t, "the process is gone", func() bool { return refuses(endpoint(task)) })
	eventually(t, "Marathon only knows that it cannot reach it", func() bool {
		return s.get("/v2/apps/a").str("app.tasks.0.state") == "TASK_UNREACHABLE"
	})
	s.Heal(0)
	s.settled("/a", 1)
}

func TestALostKillIsRepeated(t *testing.T) {
	s := start(t, quick())
	s.createCmd("/a", "exec sleep 1000", 1, "")
	s.settled("/a", 1)
	s.Inject(marathonsim.Fault{Kind: marathonsim.FaultKillLost, App: "/a", Times: 1})
	s.want(200, "PATCH", "/v2/apps/a", `{"instances":0}`)
	if a := s.call("PATCH", "/v2/apps/a", `{"instances":1}`); a.status != 409 {
		t.Errorf("the lock is gone: %d", a.status)
	}
	s.Advance(31 * time.Second)
	s.settled("/a", 0)
}

func TestContainerNetworks(t *testing.T) {
	s := start(t, quick())
	s.create("/bridge", 1, `"networks":[{"mode":"container/bridge"}],"container":{"type":"MESOS","portMappings":[
		{"containerPort":8080,"name":"http"},{"containerPort":9090,"hostPort":0}]}`)
	task := running(s.settled("/bridge", 1))[0]
	if n := len(task["ports"].([]any)); n != 2 {
		t.Errorf("ports of a bridge: %v", task["ports"])
	}
	serves(t, endpoint(task))

	// Only mappings with a hostPort have a place in ports.
	s.create("/mixed", 1, `"networks":[{"mode":"container","name":"dcos"}],"container":{"type":"MESOS","portMappings":[
		{"containerPort":8080},{"containerPort":9090,"hostPort":0}]}`)
	task = running(s.settled("/mixed", 1))[0]
	if n := len(task["ports"].([]any)); n != 1 {
		t.Errorf("ports: %v", task["ports"])
	}
	ip := at(task, "ipAddresses.0.ipAddress").(string)
	if !strings.HasPrefix(ip, "127.64.") || ip == task["host"] {
		t.Errorf("the task's own address: %s", ip)
	}
	serves(t, net.JoinHostPort(ip, "8080"))
}

func TestCloseEndsEverything(t *testing.T) {
	s, err := marathonsim.New(quick())
	if err != nil {
		t.Fatal(err)
	}
	sim := &sim{s, t}
	pids := t.TempDir() + "/pids"
	// A child in a session of its own, which no signal to the group reaches.
	sim.createCmd("/a", "setsid sh -c 'echo $$ > "+pids+"; exec sleep 1000' & exec "+appBinary+" -ignore-term", 1, "")
	task := running(sim.settled("/a", 1))[0]
	serves(t, endpoint(task))
	var pid int
	eventually(t, "the child has said its number", func() bool {
		data, _ := os.ReadFile(pids)
		n, _ := fmt.Sscan(string(data), &pid)
		return n == 1
	})
	s.Close()
	eventually(t, "all is gone", func() bool {
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		return refuses(endpoint(task)) && (err != nil || len(cmdline) == 0)
	})
	s.Close()
}
