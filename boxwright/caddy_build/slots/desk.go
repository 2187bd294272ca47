package slots

import (
	"container/list"
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// engine is what works on requests, as reverse_proxy knows it.
type engine interface {
	// String is its address: engines with the same one are the same.
	String() string
	// Available says whether it works, as far as its health checks know.
	Available() bool
}

// outcome is how it ended to ask for a slot.
type outcome int

const (
	admitted outcome = iota
	// full: engines work, and none of them had a free slot in time.
	full
	// gone: no engine works.
	gone
	// left: who asked did not want to know any more.
	left
)

// recheck is how often who waits for one of several engines looks whether another one works again, which tells nobody.
const recheck = 100 * time.Millisecond

// desk gives slots of engines out, under one lock: what it counts is never more than what may be, not for a moment.
// How many an engine has is said by who asks, so that a new configuration can have another number while requests of
// the old one are at work.
type desk struct {
	mu sync.Mutex
	// taken has the slots that are given out, by address.
	taken map[string]int
	// line has who waits, as *waiter; the first is served first.
	line    list.List
	refused uint64
}

type waiter struct {
	engines  []engine
	capacity int
	// given is set, and ready closed, when its turn has come; then it is no longer in the line.
	given engine
	ready chan struct{}
}

func newDesk() *desk { return &desk{taken: make(map[string]int)} }

// take gives a slot of one of the engines, of each of which no more than capacity are given out; it waits for one until
// the time is over or ctx is. Whoever is admitted hands the slot back with put.
func (d *desk) take(ctx context.Context, engines []engine, capacity int, until time.Time) (engine, outcome) {
	if ctx.Err() != nil {
		return nil, left
	}
	d.mu.Lock()
	if found := d.free(engines, capacity); found != nil {
		d.mu.Unlock()
		return found, admitted
	}
	if !anyAvailable(engines) {
		d.mu.Unlock()
		return nil, gone
	}
	patience := time.Until(until)
	if patience <= 0 {
		d.refused++
		d.mu.Unlock()
		return nil, full
	}
	w := &waiter{engines: engines, capacity: capacity, ready: make(chan struct{})}
	place := d.line.PushBack(w)
	d.mu.Unlock()

	d.await(ctx, w, place, patience)

	d.mu.Lock()
	defer d.mu.Unlock()
	if w.given == nil {
		d.line.Remove(place)
	}
	switch {
	case ctx.Err() != nil:
		if w.given != nil {
			d.back(w.given.String())
		}
		return nil, left
	case w.given != nil:
		return w.given, admitted
	}
	d.refused++
	return nil, full
}

// await returns when the turn of w has come, its time is over, or ctx is.
func (d *desk) await(ctx context.Context, w *waiter, place *list.Element, patience time.Duration) {
	over := time.NewTimer(patience)
	defer over.Stop()
	var again <-chan time.Time
	if len(w.engines) > 1 {
		ticker := time.NewTicker(recheck)
		defer ticker.Stop()
		again = ticker.C
	}
	for {
		select {
		case <-again:
			d.mu.Lock()
			d.serve(w, place)
			d.mu.Unlock()
		case <-w.ready:
			return
		case <-over.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// put takes a slot of the engine back, which goes to the first in the line that wants it.
func (d *desk) put(found engine) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.back(found.String())
}

func (d *desk) back(address string) {
	d.taken[address]--
	var next *list.Element
	for place := d.line.Front(); place != nil; place = next {
		next = place.Next()
		w := place.Value.(*waiter)
		if d.serve(w, place) && w.given.String() == address {
			return
		}
	}
}

// serve gives w a slot, if there is one and it has none yet.
func (d *desk) serve(w *waiter, place *list.Element) bool {
	if w.given != nil {
		return false
	}
	if w.given = d.free(w.engines, w.capacity); w.given == nil {
		return false
	}
	d.line.Remove(place)
	close(w.ready)
	return true
}

// free gives out a slot of the engine that works and has the fewest in use, by chance where several have.
func (d *desk) free(engines []engine, capacity int) engine {
	var best engine
	least, equal := capacity, 0
	for _, each := range engines {
		taken := d.taken[each.String()]
		if taken > least || taken >= capacity || !each.Available() {
			continue
		}
		if taken < least {
			least, equal = taken, 0
		}
		if equal++; rand.IntN(equal) == 0 {
			best = each
		}
	}
	if best != nil {
		d.taken[best.String()]++
	}
	return best
}

func anyAvailable(engines []engine) bool {
	for _, each := range engines {
		if each.Available() {
			return true
		}
	}
	return false
}
