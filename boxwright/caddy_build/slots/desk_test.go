package slots

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// double is an engine of which a test says whether it works.
type double struct {
	address string
	dead    atomic.Bool
}

func (d *double) String() string  { return d.address }
func (d *double) Available() bool { return !d.dead.Load() }

// some are engines that work.
func some(addresses ...string) (doubles []*double, engines []engine) {
	for _, address := range addresses {
		doubles = append(doubles, &double{address: address})
		engines = append(engines, doubles[len(doubles)-1])
	}
	return doubles, engines
}

func in(wait time.Duration) time.Time { return time.Now().Add(wait) }

// expectEmpty fails the test when anything is given out, or anybody waits.
func expectEmpty(t *testing.T, d *desk) {
	t.Helper()
	for address, taken := range d.taken {
		if taken != 0 {
			t.Errorf("%d slots of %s were never handed back", taken, address)
		}
	}
	if d.line.Len() != 0 {
		t.Errorf("%d wait in a line that nobody serves", d.line.Len())
	}
}

// In each of many bursts exactly as many are admitted as there are slots, and all others refused, after their wait.
func TestABurst(t *testing.T) {
	const capacity, wait = 10, 250 * time.Millisecond
	for _, clients := range []int{1, 10, 11, 100} {
		for range 200 {
			synctest.Test(t, func(t *testing.T) {
				d := newDesk()
				_, engines := some("a")
				var yes, no atomic.Int32
				began, served := time.Now(), make(chan struct{})
				var all sync.WaitGroup
				for range clients {
					all.Go(func() {
						switch found, how := d.take(context.Background(), engines, capacity, in(wait)); how {
						case admitted:
							yes.Add(1)
							<-served
							d.put(found)
						case full:
							no.Add(1)
							if waited := time.Since(began); waited != wait {
								t.Errorf("refused after %s", waited)
							}
						default:
							t.Errorf("ended with %d", how)
						}
					})
				}
				time.Sleep(wait + time.Millisecond)
				synctest.Wait()
				if want := min(clients, capacity); int(yes.Load()) != want || int(no.Load()) != clients-want {
					t.Errorf("of %d, %d were admitted and %d refused", clients, yes.Load(), no.Load())
				}
				close(served)
				all.Wait()
				expectEmpty(t, d)
			})
		}
	}
}

func TestWhoCannotWaitIsRefusedAtOnce(t *testing.T) {
	d := newDesk()
	_, engines := some("a")
	_, _ = d.take(context.Background(), engines, 1, in(0))
	if _, how := d.take(context.Background(), engines, 1, in(0)); how != full {
		t.Errorf("ended with %d", how)
	}
}

func TestFirstComeFirstServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk()
		_, engines := some("a")
		held, _ := d.take(context.Background(), engines, 1, in(0))
		turns := make(chan int, 5)
		for number := range 5 {
			go func() {
				_, how := d.take(context.Background(), engines, 1, in(time.Minute))
				if how != admitted {
					t.Errorf("%d ended with %d", number, how)
				}
				turns <- number
			}()
			synctest.Wait() // it is in the line before the next one comes
		}
		for want := range 5 {
			d.put(held)
			// Somebody who comes just now does not get what the line is waiting for.
			if _, how := d.take(context.Background(), engines, 1, in(0)); how != full {
				t.Errorf("a newcomer ended with %d", how)
			}
			if got := <-turns; got != want {
				t.Errorf("%d was served when it was the turn of %d", got, want)
			}
		}
		d.put(held)
		expectEmpty(t, d)
	})
}

func TestWhoLeavesStandsInNobodysWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk()
		_, engines := some("a")
		held, _ := d.take(context.Background(), engines, 1, in(0))
		ctx, leave := context.WithCancel(context.Background())
		outcomes := make(chan outcome, 2)
		ask := func(ctx context.Context) {
			_, how := d.take(ctx, engines, 1, in(time.Minute))
			outcomes <- how
		}
		go ask(ctx)
		synctest.Wait()
		go ask(context.Background())
		synctest.Wait()
		leave()
		if how := <-outcomes; how != left {
			t.Errorf("who left ended with %d", how)
		}
		d.put(held)
		if how := <-outcomes; how != admitted {
			t.Errorf("who stayed ended with %d", how)
		}
		d.put(held)
		expectEmpty(t, d)
		if _, how := d.take(ctx, engines, 1, in(time.Minute)); how != left || d.taken["a"] != 0 {
			t.Errorf("who left long ago ended with %d", how)
		}
		if d.refused != 0 {
			t.Errorf("who left was counted as refused")
		}
	})
}

// A slot that comes free at the very moment when who waits for it leaves, or has waited long enough, is not lost.
func TestLeavingAtTheMomentOfTheTurn(t *testing.T) {
	_, engines := some("a")
	for range 2000 {
		d := newDesk()
		held, _ := d.take(context.Background(), engines, 1, in(0))
		ctx, leave := context.WithCancel(context.Background())
		var all sync.WaitGroup
		for _, wait := range []time.Duration{time.Minute, 50 * time.Microsecond} {
			all.Go(func() {
				if found, how := d.take(ctx, engines, 1, in(wait)); how == admitted {
					d.put(found)
				}
			})
		}
		all.Go(func() { d.put(held) })
		all.Go(leave)
		all.Wait()
		expectEmpty(t, d)
	}
}

// Requests come, wait, leave and end in thousands: never is one more at work than may be.
func TestNeverMoreThanDeclared(t *testing.T) {
	const capacity = 7
	d := newDesk()
	_, engines := some("a", "b")
	working := map[string]*atomic.Int32{"a": new(atomic.Int32), "b": new(atomic.Int32)}
	var all sync.WaitGroup
	var served atomic.Int32
	for number := range 100 {
		all.Go(func() {
			for round := range 100 {
				ctx, leave := context.WithTimeout(context.Background(), time.Duration(number*round)*time.Microsecond)
				if found, how := d.take(ctx, engines, capacity, in(time.Millisecond)); how == admitted {
					if now := working[found.String()].Add(1); now > capacity {
						t.Errorf("%d at work in %s", now, found)
					}
					served.Add(1)
					time.Sleep(time.Duration(round) * time.Microsecond)
					working[found.String()].Add(-1)
					d.put(found)
				}
				leave()
			}
		})
	}
	all.Wait()
	expectEmpty(t, d)
	if served.Load() < 100 {
		t.Errorf("only %d were served", served.Load())
	}
}

// A new configuration with another number: what is at work stays so, and counts.
func TestAnotherCapacity(t *testing.T) {
	d := newDesk()
	_, engines := some("a")
	for range 10 {
		_, _ = d.take(context.Background(), engines, 10, in(0))
	}
	for _, each := range []struct {
		capacity int
		want     outcome
	}{{10, full}, {3, full}, {12, admitted}, {12, admitted}, {12, full}} {
		if _, how := d.take(context.Background(), engines, each.capacity, in(0)); how != each.want {
			t.Errorf("with a capacity of %d it ended with %d", each.capacity, how)
		}
	}
	for range 10 {
		d.put(engines[0])
	}
	for _, want := range []outcome{admitted, full} { // two are still at work
		if _, how := d.take(context.Background(), engines, 3, in(0)); how != want {
			t.Errorf("later it ended with %d", how)
		}
	}
}

func TestTheEngineWithTheFewestOfThoseThatWork(t *testing.T) {
	d := newDesk()
	doubles, engines := some("a", "b", "c")
	doubles[2].dead.Store(true)
	for range 10 {
		_, _ = d.take(context.Background(), engines, 10, in(0))
	}
	if d.taken["a"] != 5 || d.taken["b"] != 5 || d.taken["c"] != 0 {
		t.Errorf("not spread: %v", d.taken)
	}
	for range 2 {
		d.put(engines[0])
	}
	for range 2 {
		if found, _ := d.take(context.Background(), engines, 10, in(0)); found != engines[0] {
			t.Errorf("%s was chosen", found)
		}
	}
	// One engine of them is asked by another route: its slots are the same.
	for range 5 {
		_, _ = d.take(context.Background(), engines[:1], 10, in(0))
	}
	if _, how := d.take(context.Background(), engines[:1], 10, in(0)); how != full {
		t.Errorf("ended with %d", how)
	}
	if found, _ := d.take(context.Background(), engines, 10, in(0)); found != engines[1] {
		t.Errorf("%s was chosen", found)
	}
	for _, each := range doubles {
		each.dead.Store(true)
	}
	if _, how := d.take(context.Background(), engines, 100, in(time.Hour)); how != gone {
		t.Errorf("of dead engines it ended with %d", how)
	}
}

func TestWaitingForOneOfSeveral(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk()
		doubles, engines := some("a", "b")
		doubles[1].dead.Store(true)
		_, _ = d.take(context.Background(), engines, 1, in(0))
		got := make(chan engine, 3)
		ask := func(engines []engine) {
			found, _ := d.take(context.Background(), engines, 1, in(time.Minute))
			got <- found
		}
		go ask(engines[:1])
		synctest.Wait()
		go ask(engines)
		synctest.Wait()
		doubles[1].dead.Store(false)
		// It works again, which nobody tells: the second in the line can use it, the first waits for the other one.
		if found := <-got; found != engines[1] {
			t.Errorf("%s was given", found)
		}
		d.put(engines[0])
		if found := <-got; found != engines[0] {
			t.Errorf("%s was given", found)
		}
		d.put(engines[1])
		d.put(engines[0])
		expectEmpty(t, d)
	})
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk()
		_, engines := some("a")
		registry := prometheus.NewRegistry()
		for range 2 { // two handlers of one configuration
			if err := register(registry, d); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 {
			go d.take(context.Background(), engines, 2, in(time.Minute))
		}
		_, _ = d.take(context.Background(), engines, 0, in(0))
		synctest.Wait()
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]float64{}
		for _, family := range families {
			value := family.GetMetric()[0]
			found[family.GetName()] = value.GetGauge().GetValue() + value.GetCounter().GetValue()
		}
		want := map[string]float64{"caddy_slots_in_flight": 2, "caddy_slots_waiting": 1, "caddy_slots_refused_total": 1}
		for name, value := range want {
			if found[name] != value {
				t.Errorf("%s is %g, not %g", name, found[name], value)
			}
		}
		time.Sleep(time.Minute)
	})
}
