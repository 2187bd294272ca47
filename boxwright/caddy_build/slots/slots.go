// Package slots is a Caddy module that bounds the requests which engines work on, exactly and in the order of arrival.
//
// A request gets a slot of an engine before it is sent there, and hands it back when its answer is over, however it
// ends. When no engine has a free one, it waits for a bounded time:
//
//	route {
//		slots 10 250ms
//		reverse_proxy 127.0.0.1:8081 127.0.0.1:8082 {
//			lb_policy slots
//			lb_try_duration 250ms
//		}
//	}
//
// The handler says how many slots each upstream has, and how long a request waits; the policy chooses the upstream with
// the fewest in use of those that work. Slots are counted by the address of the upstream, for all handlers of the
// process together and over reloads: a new configuration knows of the requests of the old one.
//
// What ends without an answer is an error for handle_errors: 503 when there was no slot in time, 502 when no upstream
// works.
package slots

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// shared is the desk of this process: a variable of the package, since configurations come and go.
var shared = newDesk()

func init() {
	caddy.RegisterModule(Handler{})
	caddy.RegisterModule(Policy{})
	httpcaddyfile.RegisterHandlerDirective("slots", func(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		var handler Handler
		err := handler.UnmarshalCaddyfile(h.Dispenser)
		return handler, err
	})
	httpcaddyfile.RegisterDirectiveOrder("slots", httpcaddyfile.Before, "reverse_proxy")
}

// Handler hands back the slot that a request has taken when its answer is over.
type Handler struct {
	// The requests that each upstream works on at the same time; at least 1.
	Capacity int `json:"capacity"`
	// How long a further request waits for its turn; 0 is not at all.
	Wait caddy.Duration `json:"wait,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.slots", New: func() caddy.Module { return new(Handler) }}
}

// Provision makes the counts metrics of this configuration.
func (Handler) Provision(ctx caddy.Context) error {
	return register(ctx.GetMetricsRegistry(), shared)
}

// Validate refuses numbers that make no sense.
func (h Handler) Validate() error {
	if h.Capacity < 1 {
		return fmt.Errorf("capacity must be at least 1, not %d", h.Capacity)
	}
	if h.Wait < 0 {
		return fmt.Errorf("wait must not be negative: %s", time.Duration(h.Wait))
	}
	return nil
}

// UnmarshalCaddyfile reads
//
//	slots <capacity> [<wait>]
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the name
	arguments := d.RemainingArgs()
	if len(arguments) < 1 || len(arguments) > 2 {
		return d.ArgErr()
	}
	capacity, err := strconv.Atoi(arguments[0])
	if err != nil {
		return d.Errf("%s is not a number of requests", arguments[0])
	}
	h.Capacity = capacity
	if len(arguments) == 2 {
		wait, err := caddy.ParseDuration(arguments[1])
		if err != nil {
			return d.Errf("%s is not a time: %v", arguments[1], err)
		}
		h.Wait = caddy.Duration(wait)
	}
	if d.NextBlock(0) {
		return d.Err("slots has no block")
	}
	return h.Validate()
}

func (h Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	c := &claim{desk: shared, capacity: h.Capacity, wait: time.Duration(h.Wait)}
	defer c.end()
	err := next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), claimKey{}, c)))
	// What reverse_proxy says when no upstream was chosen.
	failed, ok := errors.AsType[caddyhttp.HandlerError](err)
	if ok && failed.StatusCode == http.StatusServiceUnavailable && c.outcome == gone {
		return caddyhttp.Error(http.StatusBadGateway, errors.New("no upstream works"))
	}
	return err
}

type claimKey struct{}

// claim is what one request has to do with slots; only its own goroutine uses it.
type claim struct {
	desk     *desk
	capacity int
	wait     time.Duration
	// until is set when a slot is asked for the first time: the body may have come slowly.
	until   time.Time
	held    engine
	outcome outcome
}

// choose gives one of the engines, with a slot in it. It keeps the slot that the request has already, since then it is
// sent again, unless that engine was found not to work.
func (c *claim) choose(ctx context.Context, engines []engine) engine {
	if c.held != nil {
		for _, each := range engines {
			if each.String() == c.held.String() && each.Available() {
				return each
			}
		}
		c.end()
	}
	if c.until.IsZero() {
		c.until = time.Now().Add(c.wait)
	}
	c.held, c.outcome = c.desk.take(ctx, engines, c.capacity, c.until)
	return c.held
}

func (c *claim) end() {
	if c.held != nil {
		c.desk.put(c.held)
		c.held = nil
	}
}

// Policy chooses an upstream with a free slot, the one with the fewest in use.
type Policy struct {
	logger *slog.Logger
}

// CaddyModule returns the Caddy module information.
func (Policy) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.reverse_proxy.selection_policies.slots",
		New: func() caddy.Module { return new(Policy) },
	}
}

// Provision sets the policy up.
func (p *Policy) Provision(ctx caddy.Context) error {
	p.logger = ctx.Slogger()
	return nil
}

// UnmarshalCaddyfile reads the name of the policy, which has no options.
func (p *Policy) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the name
	if d.NextArg() {
		return d.ArgErr()
	}
	return nil
}

// Select waits for a slot and chooses its upstream; none when it did not get one.
func (p *Policy) Select(pool reverseproxy.UpstreamPool, r *http.Request, _ http.ResponseWriter) *reverseproxy.Upstream {
	c, ok := r.Context().Value(claimKey{}).(*claim)
	if !ok {
		// What nobody hands back is not given out.
		p.logger.Error("lb_policy slots needs the directive slots before its reverse_proxy")
		return nil
	}
	engines := make([]engine, len(pool))
	for number, upstream := range pool {
		engines[number] = upstream
	}
	if found := c.choose(r.Context(), engines); found != nil {
		return found.(*reverseproxy.Upstream)
	}
	if c.outcome == left && len(pool) > 0 {
		// Without an upstream, reverse_proxy would ask again until the time is over. With any of them it ends at once, and
		// sends nothing there, since the context of the request is over.
		return pool[0]
	}
	return nil
}

var (
	_ caddy.Provisioner           = Handler{}
	_ caddy.Validator             = Handler{}
	_ caddyhttp.MiddlewareHandler = Handler{}
	_ caddyfile.Unmarshaler       = (*Handler)(nil)
	_ caddy.Provisioner           = (*Policy)(nil)
	_ caddyfile.Unmarshaler       = (*Policy)(nil)
	_ reverseproxy.Selector       = (*Policy)(nil)
)
