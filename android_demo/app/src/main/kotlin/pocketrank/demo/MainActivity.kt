package pocketrank.demo

import android.app.Activity
import android.app.AlertDialog
import android.os.Bundle
import android.view.View
import android.widget.AdapterView
import android.widget.ArrayAdapter
import android.widget.Button
import android.widget.ListView
import android.widget.Spinner
import android.widget.TextView
import android.widget.Toast
import pocketrank.ItemId

/** The one screen: a user, their past, the ten best items of the whole catalogue and why; a tap observes an item. */
class MainActivity : Activity() {
    private lateinit var desk: Desk
    private lateinit var hits: HitsAdapter
    private lateinit var past: TextView
    private lateinit var status: TextView
    private var user: String? = null

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        setContentView(R.layout.main)
        desk = Desk.of(this)
        hits = HitsAdapter(this)
        past = findViewById(R.id.past)
        status = findViewById(R.id.status)
        findViewById<ListView>(R.id.hits).run {
            adapter = hits
            setOnItemClickListener { _, _, place, _ -> observe(hits.getItem(place).item) }
        }
        findViewById<Button>(R.id.self_test).setOnClickListener { selfTest() }
        findViewById<Button>(R.id.forget).setOnClickListener { askToForget() }
        findViewById<Button>(R.id.sync).run {
            visibility = if (Sync.IS_THERE) View.VISIBLE else View.GONE
            setOnClickListener { Sync.ask(this@MainActivity, desk, user, ::say) { desk.show(user, ::fail, ::show) } }
        }
        chooseUser(state)
    }

    override fun onSaveInstanceState(state: Bundle) {
        super.onSaveInstanceState(state)
        state.putString(USER, user ?: NOBODY)
    }

    override fun onPause() {
        super.onPause()
        getPreferences(MODE_PRIVATE).edit().putString(USER, user ?: NOBODY).apply()
    }

    private fun chooseUser(state: Bundle?) {
        val users: List<String?> = desk.users + null
        val names = users.map { it ?: getString(R.string.nobody) }
        val before = state?.getString(USER) ?: getPreferences(MODE_PRIVATE).getString(USER, users.first() ?: NOBODY)
        findViewById<Spinner>(R.id.user).run {
            adapter = ArrayAdapter(context, android.R.layout.simple_spinner_dropdown_item, names)
            setSelection(users.indexOf(before.takeIf { it != NOBODY }).coerceAtLeast(0))
            onItemSelectedListener = object : AdapterView.OnItemSelectedListener {
                override fun onItemSelected(parent: AdapterView<*>, view: View?, place: Int, id: Long) {
                    user = users[place]
                    desk.show(user, ::fail, ::show)
                }

                override fun onNothingSelected(parent: AdapterView<*>) = Unit
            }
        }
    }

    private fun observe(item: ItemId) {
        say(getString(R.string.observed, "$item"))
        desk.observe(user, item, ::fail, ::show)
    }

    private fun show(shown: Desk.Shown) {
        if (isDestroyed || shown.user != user) return // somebody else was chosen meanwhile
        hits.hits = shown.hits
        past.text = shown.past.joinToString("\n") {
            getString(R.string.segment, HitsAdapter.day(this, it.endS), it.items.joinToString())
        }.ifEmpty { getString(R.string.no_past) }
        val stats = shown.stats
        status.text = getString(
            R.string.status, shown.items, shown.milliseconds, stats.segments, stats.liveEvents, stats.rememberedItems,
        )
    }

    private fun selfTest() = desk.selfTest(::fail) { parity ->
        if (!isDestroyed) {
            val text = if (parity.ok) R.string.self_test_passed else R.string.self_test_failed
            status.text = getString(text, parity.orderSame, parity.cases, parity.maxAbsDiff)
        }
    }

    private fun askToForget() {
        AlertDialog.Builder(this)
            .setMessage(R.string.forget_ask)
            .setPositiveButton(R.string.yes) { _, _ -> desk.forget(user, ::fail, ::show) }
            .setNegativeButton(R.string.no, null)
            .show()
    }

    private fun say(text: String) {
        if (!isDestroyed) Toast.makeText(this, text, Toast.LENGTH_SHORT).show()
    }

    private fun fail(why: String) {
        if (!isDestroyed) status.text = getString(R.string.failed, why)
    }

    private companion object {
        const val USER = "user"
        const val NOBODY = "" // as no pack is called
    }
}
