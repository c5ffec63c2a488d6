/*
 * Who has the card. One arbiter for all cards of a node (in the supervisor), or for one tenant (in a process of it).
 *
 * GPU time is handed out in slots: one tenant possesses the card at a time. The arbiter opens its gate; closes it at the
 * end of the slot; waits until every process that launched in it has said that its work has ended; charges the tenant the
 * time that it had work outstanding; opens the next gate. Where tenants that take turns leave the card idle for much of the
 * time, because their processors don't keep up with it, all gates are open for a while. Time is an argument of everything
 * here, and nothing sleeps.
 * Also linked into hamirt._region, where tests drive it in virtual time.
 */
#pragma once
#include "region.h"

#include <stdbool.h>

#define HM_PARTIES 256 /* tenants on one card */

/* A tenant on one card. The pages are the tenant's; the usage page may say anything. */
struct hm_party {
    struct hm_gate *gate;         /* ours to write */
    const struct hm_limit *limit; /* what it may */
    struct hm_usage *usage;
    int device;            /* its position among the tenant's devices */
    struct hm_party *gang; /* the same tenant on its other cards, in a ring in UUID order */
    struct hm_card *card;
    bool (*lives)(void *, int); /* whether a slot's process lives; asked seldom */
    void *lives_of;

    /* what the last look at the usage page found */
    bool wants;       /* a thread waits at the gate */
    bool busy;        /* a process has work outstanding, or had a moment ago */
    uint32_t entered; /* processes that have launched in this slot */
    bool drained;     /* all that have, have said that it ended */
    bool ganged;
    bool was_busy; /* at the last charge */
    uint64_t
        busy_since_ns; /* the earliest start of work that was not charged yet; UINT64_MAX: none */
    uint64_t idle_since_ns; /* the latest end of work */
    uint64_t longest_ns;    /* that one launch took */
    uint32_t worked_us;     /* the sum of its processes' */

    uint32_t percent;               /* its cap until now; 100: it had none */
    bool rests;                     /* until it has credit for a slot */
    uint64_t charged_before_ns;     /* the present slot */
    uint32_t worked_before_us;      /* the same */
    uint64_t wanted_since_ns;       /* 0: it does not wait */
    uint64_t seen_ns;               /* when it last wanted or had the card */
    uint64_t missed_ns[3];          /* the last slots whose work did not end in time */
    uint64_t free_since_ns;         /* while all gates are open; 0: its own is not */
    bool leaves;                    /* they were closed, and its work is still to be waited for */
    uint64_t absent[HM_SLOTS / 64]; /* processes that are not waited for: dead, or stopped */
    uint32_t absent_was[HM_SLOTS];  /* what such a process would change if it ran */
};

enum hm_card_state {
    HM_CARD_IDLE,     /* nobody has it */
    HM_CARD_RESERVED, /* for a gang, which waits for its other cards */
    HM_CARD_HELD,     /* one gate is open */
    HM_CARD_DRAINING, /* it was closed, its work has not ended */
    HM_CARD_OPEN,     /* nobody has it: all gates are free, of those that asked for it */
};

struct hm_card {
    struct hm_party *party[HM_PARTIES];
    int count;
    enum hm_card_state state;
    struct hm_party *holder;
    int rank;     /* the holder's when it was chosen: who has a lower one overtakes it */
    bool others;  /* one that is not of class batch wants the card, or has it */
    bool touched; /* the last step changed other cards of a gang, which are to be looked at again */
    uint64_t opened_ns;
    uint64_t claimed_ns; /* since when another waits for it in this slot; 0: nobody does */
    uint64_t closed_ns;
    uint64_t freed_ns; /* when the last slot was over, while another tenant waited; 0: nobody did */
    uint64_t
        handover_ns; /* while somebody waited, ever, and charged to nobody: what taking turns costs */
    const struct hm_party *last; /* of those that wanted the card or had it, the last one */
    uint64_t last_ns, other_ns;  /* when that was, and when another one last did */
    uint64_t latency_until_ns;   /* so did one of class latency: windows are short */
    int64_t virtual_ns;          /* how far the fair queue is */

    uint64_t taken_ns;               /* of turns without a pause, since that was last judged */
    uint64_t worked_ns;              /* of that, the card was at work */
    uint32_t sparse;                 /* so often in succession that was too little */
    uint64_t open_until_ns, open_ns; /* and for how long that was */
};

/* A tenant joins or leaves a card; what it was doing goes on, so that another arbiter can take over at any moment. */
bool hm_card_add(struct hm_card *card, struct hm_party *party, uint64_t now_ns);
void hm_card_remove(struct hm_card *card, struct hm_party *party);

/* Do what is to be done now. Returns when to look again if no bell rings before; UINT64_MAX: not at all. */
uint64_t hm_card_step(struct hm_card *card, uint64_t now_ns);

/* Others have the card and one of class latency may want it at any moment: whoever can afford it looks all the time, since to
   be woken takes as long as a small kernel, and now and then a hundred times that. */
bool hm_card_hurries(const struct hm_card *card, uint64_t now_ns);
