package slots

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

func adapt(text string) (string, error) {
	adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), nil)
	return string(adapted), err
}

func TestTheDirective(t *testing.T) {
	for text, want := range map[string]string{
		"slots 10":       `{"capacity":10,"handler":"slots"}`,
		"slots 3 250ms":  `{"capacity":3,"handler":"slots","wait":250000000}`,
		"slots /v1* 1 0": `{"capacity":1,"handler":"slots"}`,
	} {
		// Where no order is given, it comes before what it is for.
		adapted, err := adapt(":80 {\n\treverse_proxy 127.0.0.1:1 {\n\t\tlb_policy slots\n\t}\n\t" + text + "\n}")
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		first, second := strings.Index(adapted, want), strings.Index(adapted, `"handler":"reverse_proxy"`)
		if first < 0 || second < first {
			t.Errorf("%s became %s", text, adapted)
		}
		if !strings.Contains(adapted, `"selection_policy":{"policy":"slots"}`) {
			t.Errorf("the policy is not in %s", adapted)
		}
	}
}

func TestWhatTheDirectiveRefuses(t *testing.T) {
	for text, told := range map[string]string{
		"slots":               "wrong argument count",
		"slots ten":           "ten is not a number of requests",
		"slots 0":             "at least 1, not 0",
		"slots -1":            "at least 1, not -1",
		"slots 1 soon":        "soon is not a time",
		"slots 1 -2s":         "must not be negative",
		"slots 1 2s 3":        "wrong argument count",
		"slots 1 {\n\tx\n\t}": "no block",
		"reverse_proxy a:1 {\n\tlb_policy slots 3\n\t}": "wrong argument count",
	} {
		_, err := adapt(":80 {\n\t" + text + "\n}")
		if err == nil || !strings.Contains(strings.ToLower(err.Error()), told) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestNumbersInJSONAreExamined(t *testing.T) {
	for _, handler := range []Handler{{Capacity: 0}, {Capacity: 1, Wait: -1}} {
		if handler.Validate() == nil {
			t.Errorf("%+v was accepted", handler)
		}
	}
}

// server is a Caddy in this process, with clients of it.
type server struct {
	t      *testing.T
	socket string
	// loads counts configurations; each answer says by which of them it was given.
	loads atomic.Int32
}

// backend works on a request until it is released, and knows how many it works on.
type backend struct {
	*httptest.Server
	working, peak, seen atomic.Int32
	release             chan struct{}
}

func newBackend(t *testing.T) *backend {
	b := &backend{release: make(chan struct{})}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		now := b.working.Add(1)
		defer b.working.Add(-1)
		b.seen.Add(1)
		for peak := b.peak.Load(); now > peak && !b.peak.CompareAndSwap(peak, now); peak = b.peak.Load() {
		}
		switch r.URL.Path {
		case "/upgrade":
			connection, buffered, _ := w.(http.Hijacker).Hijack()
			fmt.Fprint(connection, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			io.Copy(connection, buffered)
			connection.Close()
			return
		case "/stream":
			fmt.Fprint(w, "first\n")
			w.(http.Flusher).Flush()
		case "/broken":
			fmt.Fprint(w, "half")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		select {
		case <-b.release:
		case <-r.Context().Done():
		}
		fmt.Fprint(w, "done")
	}))
	t.Cleanup(b.Server.Close)
	t.Cleanup(func() { close(b.release) })
	return b
}

func (b *backend) address() string { return b.Listener.Addr().String() }

func newServer(t *testing.T) *server {
	// A path of a socket is short.
	folder, err := os.MkdirTemp("", "slots")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", folder)
	t.Setenv("XDG_CONFIG_HOME", folder)
	t.Setenv("XDG_DATA_HOME", folder)
	s := &server{t: t, socket: filepath.Join(folder, "http")}
	t.Cleanup(func() {
		caddy.Stop()
		os.RemoveAll(folder)
	})
	return s
}

// load loads a configuration with these lines in its route.
func (s *server) load(lines string) {
	s.t.Helper()
	adapted, err := adapt(fmt.Sprintf(
		"{\n\tadmin off\n\tpersist_config off\n\tlog {\n\t\toutput discard\n\t}\n}\n"+
			"http:// {\n\tbind unix/%s\n\theader Number %d\n\troute {\n%s\n\t}\n}\n", s.socket, s.loads.Add(1), lines))
	if err != nil {
		s.t.Fatal(err)
	}
	if err := caddy.Load([]byte(adapted), true); err != nil {
		s.t.Fatal(err)
	}
}

func proxy(capacity int, wait string, more string, backends ...*backend) string {
	var to []string
	for _, each := range backends {
		to = append(to, each.address())
	}
	return fmt.Sprintf("slots %d %s\nreverse_proxy %s {\nlb_policy slots\nlb_try_duration %s\nlb_try_interval 10ms\n%s\n}",
		capacity, wait, strings.Join(to, " "), wait, more)
}

func (s *server) client() *http.Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", s.socket)
	}
	transport := &http.Transport{DialContext: dial, DisableKeepAlives: true}
	return &http.Client{Transport: transport}
}

// ask makes a request; its status, 0 for a client that left. It asks again when the server was just being replaced: for
// a moment after a load, the one before may take a connection, and close it or answer by what it knew.
func (s *server) ask(ctx context.Context, path string) int {
	for {
		r, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://box.test"+path, strings.NewReader("{}"))
		answer, err := s.client().Do(r)
		if ctx.Err() != nil {
			return 0
		}
		if err != nil {
			continue
		}
		io.Copy(io.Discard, answer.Body)
		answer.Body.Close()
		if answer.StatusCode < 400 || answer.Header.Get("Number") == fmt.Sprint(s.loads.Load()) {
			return answer.StatusCode
		}
	}
}

// crowd asks `clients` times at once; what they get comes by the channel.
func (s *server) crowd(ctx context.Context, clients int, path string) <-chan int {
	got := make(chan int, clients)
	for range clients {
		go func() { got <- s.ask(ctx, path) }()
	}
	return got
}

func (s *server) expect(got <-chan int, count, status int) {
	s.t.Helper()
	for range count {
		if found := <-got; found != status {
			s.t.Errorf("%d instead of %d", found, status)
		}
	}
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// state is what the shared desk knows of one engine, and how many wait.
func state(address string) (taken, waiting int) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	return shared.taken[address], shared.line.Len()
}

func expectFree(t *testing.T, address string) {
	t.Helper()
	eventually(t, "every slot is handed back", func() bool { taken, waiting := state(address); return taken+waiting == 0 })
}

func TestBurstsThroughCaddy(t *testing.T) {
	s, b := newServer(t), newBackend(t)
	s.load(proxy(10, "50ms", "", b))
	for _, clients := range []int{1, 10, 100} {
		for range 10 {
			working := min(clients, 10)
			got := s.crowd(context.Background(), clients, "/")
			s.expect(got, clients-working, http.StatusServiceUnavailable)
			eventually(t, "the others work", func() bool { return int(b.working.Load()) == working })
			if taken, _ := state(b.address()); taken != working {
				t.Errorf("%d slots are taken", taken)
			}
			for range working {
				b.release <- struct{}{}
			}
			s.expect(got, working, http.StatusOK)
			expectFree(t, b.address())
		}
	}
	if peak := b.peak.Load(); peak != 10 {
		t.Errorf("%d at once", peak)
	}
}

// Over reloads nothing is forgotten: neither who works nor who waits; and a new number counts for new requests.
func TestReloads(t *testing.T) {
	s, b := newServer(t), newBackend(t)
	s.load(proxy(2, "60s", "", b))
	working := s.crowd(context.Background(), 2, "/")
	eventually(t, "two work", func() bool { return b.working.Load() == 2 })
	waiting := s.crowd(context.Background(), 1, "/")
	eventually(t, "one waits", func() bool { _, waiting := state(b.address()); return waiting == 1 })
	s.load(proxy(2, "0", "", b))
	s.expect(s.crowd(context.Background(), 5, "/"), 5, http.StatusServiceUnavailable)
	s.load(proxy(3, "0", "", b))
	third := s.crowd(context.Background(), 1, "/")
	eventually(t, "three work", func() bool { return b.working.Load() == 3 })
	s.expect(s.crowd(context.Background(), 5, "/"), 5, http.StatusServiceUnavailable)
	s.load(proxy(1, "0", "", b))
	s.expect(s.crowd(context.Background(), 5, "/"), 5, http.StatusServiceUnavailable)
	for range 4 {
		b.release <- struct{}{}
	}
	s.expect(working, 2, http.StatusOK)
	s.expect(waiting, 1, http.StatusOK)
	s.expect(third, 1, http.StatusOK)
	expectFree(t, b.address())
}

func TestClientsThatLeaveWhileTheyWait(t *testing.T) {
	s, b := newServer(t), newBackend(t)
	s.load(proxy(1, "60s", "request_buffers 1KB", b))
	working := s.crowd(context.Background(), 1, "/")
	eventually(t, "one works", func() bool { return b.working.Load() == 1 })
	ctx, leave := context.WithCancel(context.Background())
	leaving := s.crowd(ctx, 20, "/")
	eventually(t, "twenty wait", func() bool { _, waiting := state(b.address()); return waiting == 20 })
	staying := s.crowd(context.Background(), 1, "/")
	eventually(t, "one more waits", func() bool { _, waiting := state(b.address()); return waiting == 21 })
	leave()
	s.expect(leaving, 20, 0)
	eventually(t, "only that one waits", func() bool { _, waiting := state(b.address()); return waiting == 1 })
	for range 2 {
		b.release <- struct{}{}
	}
	s.expect(working, 1, http.StatusOK)
	s.expect(staying, 1, http.StatusOK)
	if seen := b.seen.Load(); seen != 2 {
		t.Errorf("the engine has seen %d requests", seen)
	}
	expectFree(t, b.address())
}

func TestClientsThatLeaveWhileTheEngineWorks(t *testing.T) {
	s, b := newServer(t), newBackend(t)
	s.load(proxy(3, "0", "", b))
	for _, path := range []string{"/", "/stream"} {
		ctx, leave := context.WithCancel(context.Background())
		got := s.crowd(ctx, 3, path)
		eventually(t, "they work", func() bool { return b.working.Load() == 3 })
		leave()
		for range 3 {
			<-got
		}
		expectFree(t, b.address())
	}
}

// A stream, and a connection that became something else, hold their slot until the last byte.
func TestLongAnswers(t *testing.T) {
	s, b := newServer(t), newBackend(t)
	s.load(proxy(1, "0", "", b))
	answer, err := s.client().Get("http://box.test/stream")
	if err != nil {
		t.Fatal(err)
	}
	reader := bufio.NewReader(answer.Body)
	if line, _ := reader.ReadString('\n'); line != "first\n" {
		t.Errorf("it began with %q", line)
	}
	s.expect(s.crowd(context.Background(), 2, "/"), 2, http.StatusServiceUnavailable)
	b.release <- struct{}{}
	io.Copy(io.Discard, reader)
	answer.Body.Close()
	expectFree(t, b.address())

	connection, err := net.Dial("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(connection, "GET /upgrade HTTP/1.1\r\nHost: box.test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	reader = bufio.NewReader(connection)
	if line, _ := reader.ReadString('\n'); !strings.Contains(line, "101") {
		t.Fatalf("it began with %q", line)
	}
	s.expect(s.crowd(context.Background(), 2, "/"), 2, http.StatusServiceUnavailable)
	connection.Close()
	expectFree(t, b.address())
}

// However an answer fails, its slot comes back, and errors say what is the matter.
func TestFailures(t *testing.T) {
	s, b := newServer(t), newBackend(t)
	s.load(proxy(1, "0", "", b))
	for range 3 {
		s.ask(context.Background(), "/broken")
		expectFree(t, b.address())
	}
	other := newBackend(t)
	address := other.address()
	other.Close()
	s.load(proxy(1, "100ms", "", other))
	for range 3 {
		if status := s.ask(context.Background(), "/"); status != http.StatusBadGateway {
			t.Errorf("an engine that is gone: %d", status)
		}
	}
	expectFree(t, address)
	// Of several, the one that is gone costs nobody an answer; when all are known to be, that is not called busy.
	s.load(proxy(1, "100ms", "max_fails 1\nfail_duration 60s", other, b))
	got := s.crowd(context.Background(), 1, "/")
	eventually(t, "the other one works", func() bool { return b.working.Load() == 1 })
	b.release <- struct{}{}
	s.expect(got, 1, http.StatusOK)
	s.load(proxy(1, "100ms", "max_fails 1\nfail_duration 60s", other))
	for range 3 {
		if status := s.ask(context.Background(), "/"); status != http.StatusBadGateway {
			t.Errorf("engines that are gone: %d", status)
		}
	}
	expectFree(t, address)
	expectFree(t, b.address())
}

// Who dialled in vain, and is sent again, has its slot still: nobody else got in between.
func TestARequestThatIsSentAgainKeepsItsSlot(t *testing.T) {
	d := newDesk()
	doubles, engines := some("a", "b")
	c := &claim{desk: d, capacity: 1}
	if c.choose(context.Background(), engines[:1]) != engines[0] || c.choose(context.Background(), engines[:1]) != engines[0] {
		t.Error("another engine was chosen")
	}
	if d.taken["a"] != 1 {
		t.Errorf("%d slots", d.taken["a"])
	}
	doubles[0].dead.Store(true)
	if c.choose(context.Background(), engines) != engines[1] || d.taken["a"] != 0 {
		t.Error("the engine that does not work was not left")
	}
	c.end()
	c.end()
	expectEmpty(t, d)
}

// Who left gets no slot, and is not asked for again and again.
func TestOneWhoLeftIsDoneWith(t *testing.T) {
	d := newDesk()
	ctx, leave := context.WithCancel(context.Background())
	c := &claim{desk: d, capacity: 1, wait: time.Minute}
	r := httptest.NewRequestWithContext(context.WithValue(ctx, claimKey{}, c), http.MethodPost, "/", nil)
	leave()
	pool := reverseproxy.UpstreamPool{{Dial: "a", Host: new(reverseproxy.Host)}}
	if new(Policy).Select(pool, r, nil) != pool[0] {
		t.Error("it would be asked for again")
	}
	expectEmpty(t, d)
}

func TestThePolicyAloneLetsNobodyThrough(t *testing.T) {
	s, b := newServer(t), newBackend(t)
	s.load(fmt.Sprintf("reverse_proxy %s {\nlb_policy slots\n}", b.address()))
	if status := s.ask(context.Background(), "/"); status != http.StatusServiceUnavailable {
		t.Errorf("it answered %d", status)
	}
}

// Two routes and two engines: each engine has its own bound, whoever asks.
func TestEnginesHaveTheirOwnSlots(t *testing.T) {
	s, one, two := newServer(t), newBackend(t), newBackend(t)
	both := strings.ReplaceAll(proxy(3, "50ms", "", one, two), "\n", "\n\t")
	s.load("route /both {\n" + both + "\n}\nroute {\n" + proxy(3, "50ms", "", one) + "\n}")
	alone := s.crowd(context.Background(), 2, "/")
	eventually(t, "two work", func() bool { return one.working.Load() == 2 })
	got := s.crowd(context.Background(), 50, "/both")
	s.expect(got, 46, http.StatusServiceUnavailable)
	eventually(t, "four more work", func() bool { return one.working.Load() == 3 && two.working.Load() == 3 })
	var all sync.WaitGroup
	for _, each := range []*backend{one, two} {
		all.Go(func() {
			for range 3 {
				each.release <- struct{}{}
			}
		})
	}
	all.Wait()
	s.expect(alone, 2, http.StatusOK)
	s.expect(got, 4, http.StatusOK)
	if one.peak.Load() != 3 || two.peak.Load() != 3 {
		t.Errorf("%d and %d at once", one.peak.Load(), two.peak.Load())
	}
}

func TestItIsRegistered(t *testing.T) {
	for _, name := range []string{"http.handlers.slots", "http.reverse_proxy.selection_policies.slots"} {
		info, err := caddy.GetModule(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := json.Marshal(info.New()); err != nil {
			t.Error(err)
		}
	}
}
